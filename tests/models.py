# Shapes: B batch, S tokens, D channels, T frames, P tokens per frame
"""Small models for the tests, and their forwards written by hand: the reference that no hook takes part in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersync_adapter_dit import tiny as dit
from layersync_adapter_flux import tiny as flux
from layersync_adapter_wan import tiny as wan
from layersync_core import Attachment, BlockStackAdapter, attach

Inputs = dict[str, Any]
CASES = ("dit", "flux", "flux references", "wan", "wan 2.2", "wan vace", "wan animate")


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Move every weight, so that no block is the identity and no projection is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def build(case: str, batch: int = 2) -> tuple[nn.Module, Inputs]:
    """Return a model in eval mode (DiT drops labels at random in train mode) and inputs for it."""
    torch.manual_seed(0)
    family = case.split()[0]
    make = {"wan vace": wan.tiny_vace, "wan animate": wan.tiny_animate}.get(case)
    tiny: Any = {"dit": dit, "flux": flux, "wan": wan}[family]
    model = randomise((make or tiny.tiny_model)()).eval()
    inputs = tiny.example_inputs(model, batch, **({"references": 2} if case == "flux references" else {}))
    if case == "wan 2.2":  # one timestep per token, as in image-to-video of Wan 2.2
        if version("diffusers") < "0.34":
            pytest.skip("the Wan of diffusers 0.33 has no timesteps of single tokens")
        inputs["timestep"] = torch.randint(0, 1000, (batch, 3 * 4 * 4))
    return model, inputs


def states_by_hand(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return every block's image or video tokens, (B, S, D), from a forward written with the model's own parts."""
    return _BY_HAND[type(model).__name__](model, **inputs)


def has_states_by_hand(model: nn.Module) -> bool:
    """Return whether ``states_by_hand`` knows the model."""
    return type(model).__name__ in _BY_HAND


def _dit(model: Any, hidden_states: Tensor, timestep: Tensor, class_labels: Tensor) -> list[Tensor]:
    state, states = model.pos_embed(hidden_states), []
    for block in model.transformer_blocks:
        state = block(state, timestep=timestep, class_labels=class_labels)
        states.append(state)
    return states


def _flux(
    model: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    pooled_projections: Tensor,
    timestep: Tensor,
    img_ids: Tensor,
    txt_ids: Tensor,
) -> list[Tensor]:
    if version("diffusers") < "0.34":
        pytest.skip("diffusers 0.33 joins text and image in front of the single-stream blocks")
    image, text = model.x_embedder(hidden_states), model.context_embedder(encoder_hidden_states)
    condition = model.time_text_embed(timestep * 1000, pooled_projections)
    rotary = model.pos_embed(torch.cat([txt_ids, img_ids]))
    states = []
    for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
        text, image = block(image, text, condition, rotary)
        states.append(image)
    return states


def _wan(
    model: Any,
    hidden_states: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    encoder_hidden_states_image: Tensor | None = None,
    control_hidden_states: Tensor | None = None,
    pose_hidden_states: Tensor | None = None,
    face_pixel_values: Tensor | None = None,
) -> list[Tensor]:
    rotary = model.rope(hidden_states)
    patches = model.patch_embedding(hidden_states)
    if pose_hidden_states is not None:
        pose = model.pose_patch_embedding(pose_hidden_states)
        patches = patches + F.pad(pose, (0, 0, 0, 0, 1, 0))  # the first frame is the reference image
    state = patches.flatten(2).transpose(1, 2)
    per_token = timestep.shape[1] if timestep.ndim == 2 else None
    _, modulation, text, picture = model.condition_embedder(
        timestep.flatten(), encoder_hidden_states, encoder_hidden_states_image, timestep_seq_len=per_token
    )
    modulation = modulation.unflatten(2 if per_token else 1, (6, -1))
    context = text if picture is None else torch.cat([picture, text], dim=1)

    after: dict[int, Callable[[Tensor], Tensor]] = {}
    if control_hidden_states is not None:
        control = model.vace_patch_embedding(control_hidden_states).flatten(2).transpose(1, 2)
        for index, block in zip(model.config.vace_layers, model.vace_blocks, strict=True):
            hint, control = block(state, context, control, modulation, rotary)
            after[index] = lambda state, hint=hint: state + hint
    if face_pixel_values is not None:
        faces = face_pixel_values.transpose(1, 2).flatten(0, 1)
        motion = model.face_encoder(model.motion_encoder(faces).unflatten(0, (len(state), -1)))
        motion = F.pad(motion, (0,) * 2 * (motion.ndim - 2) + (1, 0))
        for index, part in enumerate(model.face_adapter):
            every = model.config.inject_face_latents_blocks
            after[index * every] = lambda state, part=part: state + part(state, motion)

    states = []
    for index, block in enumerate(model.blocks):
        state = block(state, context, modulation, rotary)
        states.append(state)
        state = after.get(index, lambda state: state)(state)
    return states


_BY_HAND: dict[str, Callable[..., list[Tensor]]] = {
    "DiTTransformer2DModel": _dit,
    "FluxTransformer2DModel": _flux,
    "WanTransformer3DModel": _wan,
    "WanVACETransformer3DModel": _wan,
    "WanAnimateTransformer3DModel": _wan,
}


def mean_cosine(student: Tensor, teacher: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return the mean cosine of (B, S, D) states in plain torch, over the tokens of a (S,) bool mask."""
    if keep is not None:
        student, teacher = student[:, keep], teacher[:, keep]
    return F.cosine_similarity(student, teacher.detach(), dim=-1).mean()


def generated(inputs: Inputs) -> Tensor | None:
    """Return Flux's (S,) bool mask of generated tokens; None for the other families."""
    return inputs["img_ids"][:, 0] == 0 if "img_ids" in inputs else None


def settings(student: int | None = 1, teacher: int | None = 3, weight: float = 0.5, **more: Any) -> dict[str, Any]:
    """Return enabled settings; block numbers count from 1."""
    blocks = {"layersync_student_block": student, "layersync_teacher_block": teacher}
    return {"layersync_enabled": True, "layersync_lambda": weight, **blocks, **more}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of the parameters that have one, and forget them."""
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def gradients_by_autograd(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of a loss with respect to the parameters that it depends on."""
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {name: grad for name, grad in zip(names, grads, strict=True) if grad is not None}


def assert_same_gradients(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float = 1e-5, floor: float = 1e-3
) -> None:
    """Compare name by name: a missing gradient is one of zeros, and nothing is all zeros."""
    assert expected
    scale = max(float(grad.norm()) for grad in expected.values())
    assert scale > 0
    for name in {*found, *expected}:
        some = found.get(name, expected.get(name))
        assert some is not None
        ours, theirs = (grads.get(name, torch.zeros_like(some)) for grads in (found, expected))
        # Gradients that cancel out have no digits of their own left: judge those by the largest.
        limit = tolerance * max(float(theirs.norm()), floor * scale)
        assert float((ours - theirs).norm()) <= limit, name


class ToyBlock(nn.Module):
    """A block whose tokens see each other; it can be made to fail."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.fails = False

    def forward(self, state: Tensor) -> Tensor:
        if self.fails:
            raise ArithmeticError("this block fails")
        return state + self.outer(torch.tanh(self.inner(state + state.mean(dim=1, keepdim=True))))


class Toy(nn.Module):
    """A model of four blocks, the quickest there is; ``reentrant`` None runs it without checkpointing."""

    def __init__(self, depth: int = 4, width: int = 8, reentrant: bool | None = None) -> None:
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.blocks = nn.ModuleList(ToyBlock(width) for _ in range(depth))
        self.head = nn.Linear(width, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        state = self.embed(x)
        for block in self.blocks:
            if self.reentrant is not None and torch.is_grad_enabled():
                state = checkpoint(block, state, use_reentrant=self.reentrant)
            else:
                state = block(state)
        return self.head(state)


TOY = BlockStackAdapter(
    family="toy", model_classes="Toy", stacks="blocks", embedder="embed", width="embed.out_features"
)


class Outside(nn.Module):
    """LoRA as in kohya's trainers: its weights aren't part of the model, whose linear layer's forward it replaces."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)
        self.original = [linear.forward]
        linear.forward = self.forward  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Tensor:
        return self.original[0](x) + self.up(self.down(x))


def toy(**arguments: Any) -> Toy:
    """Return a Toy that is the same every time."""
    torch.manual_seed(0)
    return Toy(**arguments)


def toy_input(batch: int = 2, tokens: int = 5, seed: int = 0) -> Tensor:
    """Return (B, S, 3)."""
    return torch.randn(batch, tokens, 3, generator=torch.Generator().manual_seed(seed))


def toy_states(model: Toy, x: Tensor) -> list[Tensor]:
    """Return every block's output, (B, S, D)."""
    state, states = model.embed(x), []
    for block in model.blocks:
        state = block(state)
        states.append(state)
    return states


def toy_term(model: Toy, x: Tensor, student: int = 1, teacher: int = 3, weight: float = 0.5) -> tuple[Tensor, Any]:
    """Return LayerSync's term for the block numbers, and its gradients by parameter name, without any hook."""
    copied = copy.deepcopy(model)
    states = toy_states(copied, x)
    loss = -weight * mean_cosine(states[student - 1], states[teacher - 1])
    return loss.detach(), gradients_by_autograd(loss, copied)


class _TextFirst(nn.Module):
    """A block on text and image tokens, in the two forms that Flux's blocks have had."""

    def __init__(self, width: int, joined: bool) -> None:
        super().__init__()
        self.linear, self.joined = nn.Linear(width, width), joined

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None) -> Any:
        both = hidden_states
        if encoder_hidden_states is not None:
            both = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        both = both + torch.tanh(self.linear(both + both.mean(dim=1, keepdim=True)))
        if self.joined:
            return both
        assert encoder_hidden_states is not None
        text = encoder_hidden_states.shape[1]
        return both[:, :text], both[:, text:]


class FluxTransformer2DModel(nn.Module):
    """Flux as older diffusers had it: single blocks take and return one sequence, text first."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner_dim = width
        self.x_embedder, self.context_embedder = nn.Linear(4, width), nn.Linear(6, width)
        self.transformer_blocks = nn.ModuleList(_TextFirst(width, joined=False) for _ in range(2))
        self.single_transformer_blocks = nn.ModuleList(_TextFirst(width, joined=True) for _ in range(2))

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, img_ids: Tensor | None = None) -> Tensor:
        image, text = self.x_embedder(hidden_states), self.context_embedder(encoder_hidden_states)
        for block in self.transformer_blocks:
            text, image = block(hidden_states=image, encoder_hidden_states=text)
        both = torch.cat([text, image], dim=1)
        for block in self.single_transformer_blocks:
            both = block(hidden_states=both)
        return both[:, text.shape[1] :]


def old_flux_states(
    model: FluxTransformer2DModel, hidden_states: Tensor, encoder_hidden_states: Tensor
) -> list[Tensor]:
    """Return every block's image tokens, (B, S, D)."""
    image, text = model.x_embedder(hidden_states), model.context_embedder(encoder_hidden_states)
    states = []
    for block in model.transformer_blocks:
        text, image = block(image, text)
        states.append(image)
    both = torch.cat([text, image], dim=1)
    for block in model.single_transformer_blocks:
        both = block(both)
        states.append(both[:, -image.shape[1] :])
    return states


def hooks_on(model: nn.Module) -> int:
    """Return how many hooks the model and its parts have."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    flags = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in (*kinds, *flags))


def attached(model: nn.Module, student: int | None = 1, teacher: int | None = 3, **more: Any) -> Attachment:
    """Attach to a Toy."""
    return attach(model, settings(student, teacher, **more), adapter=TOY)


def close(found: Tensor, expected: Tensor | float, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=tolerance, atol=1e-6)
