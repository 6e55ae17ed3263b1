"""Flux and Flux Kontext: diffusers' class, and stand-ins for older diffusers, the original and DiffSynth-Studio."""

from functools import partial
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_adapter_flux import adapter, tiny
from layersync_core import attach
from layersync_core.testing import AdapterConformance, randomise_weights

# These look at what a single block of newer diffusers returns, (text, image), or take its forward apart.
newer_diffusers = pytest.mark.skipif(
    "encoder_hidden_states" not in signature(tiny.tiny_model().single_transformer_blocks[0].forward).parameters,
    reason="single blocks of this diffusers return one tensor themselves",
)


def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"encoder_hidden_states": torch.randn(2, 9, 12), "txt_ids": torch.zeros(9, 3)}


class TestFlux(AdapterConformance):
    family = "flux"
    depth = 6
    longer_text = longer_text


class TestKontext(TestFlux):
    example_inputs = partial(tiny.example_inputs, references=1)


def attached_loss(model: nn.Module, inputs: dict[str, Any], tokens: str, teacher: int, student: int = 1) -> Tensor:
    settings = {"enabled": True, "student_block": student, "teacher_block": teacher, "lambda": 1, "tokens": tokens}
    with attach(model, {f"layersync_{key}": value for key, value in settings.items()}) as sync:
        model(**inputs)
        return sync.loss()


@newer_diffusers
@pytest.mark.parametrize(("tokens", "counted"), [("target", slice(16)), ("all", slice(None))])
@pytest.mark.parametrize("batched_ids", [False, True])
def test_references_count_only_when_asked(tokens: str, counted: slice, batched_ids: bool) -> None:
    model = randomise_weights(tiny.tiny_model())
    inputs = tiny.example_inputs(model, 2, references=2)
    if batched_ids:
        inputs["img_ids"] = inputs["img_ids"].expand(2, -1, -1)
    seen: list[Tensor] = []
    for block in (model.transformer_blocks[0], model.single_transformer_blocks[-1]):
        block.register_forward_hook(lambda module, args, output: seen.append(output[1][:, counted]))
    loss = attached_loss(model, inputs, tokens, teacher=6)
    torch.testing.assert_close(loss, -torch.cosine_similarity(*seen, dim=-1).mean())


@newer_diffusers
@pytest.mark.parametrize("references", [0, 1, 3])
@pytest.mark.parametrize("teacher", [2, 3])  # of two streams, and of one
def test_residuals_of_a_controlnet_are_not_captured(references: int, teacher: int) -> None:
    model = randomise_weights(tiny.tiny_model())
    inputs = tiny.example_inputs(model, 2, references=references)
    plain = attached_loss(model, inputs, "target", teacher)
    seen: list[Tensor] = []
    for block in (
        model.transformer_blocks[0],
        [*model.transformer_blocks, *model.single_transformer_blocks][teacher - 1],
    ):
        block.register_forward_hook(lambda module, args, output: seen.append(output[1][:, :16].clone()))
    residuals = [100 * torch.randn(2, 16 * (1 + references), 32) for _ in range(2)]
    controlled = {"controlnet_block_samples": residuals, "controlnet_single_block_samples": residuals}
    loss = attached_loss(model, inputs | controlled, "target", teacher)
    torch.testing.assert_close(loss, -torch.cosine_similarity(*seen, dim=-1).mean())
    assert (loss - plain).abs() > 1e-3


def test_only_position_ids_decide_what_is_a_reference() -> None:
    torch.manual_seed(0)
    model = tiny.tiny_model().eval()
    inputs = tiny.example_inputs(model, 2, references=1)
    moved = inputs | {"img_ids": inputs["img_ids"].flip(0), "hidden_states": inputs["hidden_states"].flip(1)}
    losses = [attached_loss(model, given, "target", teacher=5, student=2) for given in (moved, inputs)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)


class FluxSingleTransformerBlock(nn.Module):
    """The single-stream block of older diffusers, which takes and returns [text, image]."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, hidden_states: Tensor, temb: Tensor, image_rotary_emb: Any) -> Tensor:
        text, image = hidden_states[:, :5], hidden_states[:, 5:]
        return torch.cat(self.block(image, text, temb, image_rotary_emb), dim=1)


class FluxTransformer2DModel(nn.Module):
    """Stands in for the class of older diffusers."""

    def __init__(self) -> None:
        super().__init__()
        inner = tiny.tiny_model()
        self.inner_dim = inner.inner_dim
        for name, module in inner.named_children():
            setattr(self, name, module)
        self.single_transformer_blocks = nn.ModuleList(
            FluxSingleTransformerBlock(block) for block in inner.single_transformer_blocks
        )
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
        img_ids: Tensor,
        txt_ids: Tensor,
    ) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        image, text = self.x_embedder(hidden_states), self.context_embedder(encoder_hidden_states)
        temb = self.time_text_embed(timestep * 1000, pooled_projections)
        rotary = self.pos_embed(torch.cat((txt_ids, img_ids)))
        for block in self.transformer_blocks:
            text, image = call(block, image, text, temb, rotary)
        joint = torch.cat((text, image), dim=1)
        for block in self.single_transformer_blocks:
            joint = call(block, joint, temb, rotary)
        return self.proj_out(self.norm_out(joint[:, 5:], temb))


@newer_diffusers
class TestFluxOfOlderDiffusers(TestFlux):
    tiny_model = FluxTransformer2DModel
    longer_text = None


class DoubleStreamBlock(nn.Module):
    """The block of sd-scripts and musubi-tuner: it checkpoints itself."""

    def __init__(self, width: int):
        super().__init__()
        self.img_mlp, self.txt_mlp, self.img_mod = (nn.Linear(width, width) for _ in range(3))
        self.checkpoint: Any = None

    def _forward(self, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor) -> tuple[Tensor, Tensor]:
        shared = 0.3 * torch.cat((txt, img), dim=1).mean(dim=1, keepdim=True) + pe.mean()
        mod = self.img_mod(vec)[:, None]
        return img + mod * self.img_mlp(img + shared), txt + mod * self.txt_mlp(txt + shared)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor, control_lengths: Any = None) -> Any:
        if self.checkpoint:
            return self.checkpoint(self._forward, img, txt, vec, pe)
        return self._forward(img, txt, vec, pe)


class SingleStreamBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear1, self.modulation = nn.Linear(width, width), nn.Linear(width, width)
        self.checkpoint: Any = None

    def _forward(self, x: Tensor, vec: Tensor, pe: Tensor) -> Tensor:
        return x + self.modulation(vec)[:, None] * self.linear1(x + 0.3 * x.mean(dim=1, keepdim=True) + pe.mean())

    def forward(self, x: Tensor, vec: Tensor, pe: Tensor, control_lengths: Any = None) -> Tensor:
        return self.checkpoint(self._forward, x, vec, pe) if self.checkpoint else self._forward(x, vec, pe)


class Flux(nn.Module):
    """Stands in for the class of the original repository, sd-scripts and musubi-tuner."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 16
        self.img_in, self.txt_in = nn.Linear(8, 16), nn.Linear(12, 16)
        self.time_in, self.vector_in = nn.Linear(1, 16), nn.Linear(8, 16)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(16) for _ in range(2))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(16) for _ in range(2))
        self.final_layer = nn.Linear(16, 8)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        for block in self.double_blocks + self.single_blocks:
            block.checkpoint = gradient_checkpointing_func

    def forward(
        self,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        timesteps: Tensor,
        y: Tensor,
        guidance: Tensor | None = None,
        control_lengths: list[int] | None = None,
    ) -> Tensor:
        img, txt = self.img_in(img), self.txt_in(txt)
        vec = self.time_in(timesteps[:, None]) + self.vector_in(y)
        pe = torch.cat((txt_ids, img_ids), dim=1)
        for block in self.double_blocks:
            img, txt = block(img=img, txt=txt, vec=vec, pe=pe, control_lengths=control_lengths)
        img = torch.cat((txt, img), dim=1)
        for block in self.single_blocks:
            img = block(img, vec=vec, pe=pe, control_lengths=control_lengths)
        return self.final_layer(img[:, txt.shape[1] :])


def original_inputs(model: nn.Module, batch_size: int, references: int = 0) -> dict[str, Any]:
    ids = torch.cat([torch.zeros(8, 3), torch.eye(3)[:1].expand(8 * references, 3)])
    return {
        "img": torch.randn(batch_size, len(ids), 8),
        "img_ids": ids.expand(batch_size, -1, -1),
        "txt": torch.randn(batch_size, 5, 12),
        "txt_ids": torch.zeros(batch_size, 5, 3),
        "timesteps": torch.rand(batch_size),
        "y": torch.randn(batch_size, 8),
    }


class TestOriginalFlux(AdapterConformance):
    family = "flux"
    tiny_model = Flux
    example_inputs = original_inputs
    depth = 4

    @staticmethod
    def longer_text(inputs):
        return inputs | {"txt": torch.randn(2, 9, 12), "txt_ids": torch.zeros(2, 9, 3)}


class TestOriginalKontext(TestOriginalFlux):
    example_inputs = partial(original_inputs, references=1)

    def test_references_count_only_when_asked(self) -> None:
        model = randomise_weights(Flux())
        inputs = original_inputs(model, 2, references=1)
        loss = attached_loss(model, inputs, "target", teacher=4)
        inputs["img"] = torch.cat([inputs["img"][:, :8], inputs["img"][:, 8:].flip(1)], dim=1)
        torch.testing.assert_close(attached_loss(model, inputs, "target", teacher=4), loss)
        assert (attached_loss(model, inputs, "all", teacher=4) - loss).abs() > 0.01
        inputs["img_ids"] = torch.zeros_like(inputs["img_ids"])
        torch.testing.assert_close(
            attached_loss(model, inputs, "target", teacher=4), attached_loss(model, inputs, "all", teacher=4)
        )


class Chroma(Flux):
    """sd-scripts derives its Chroma from its Flux."""

    def __init__(self) -> None:
        super().__init__()
        del self.vector_in


def test_a_chroma_is_not_a_flux() -> None:
    assert not adapter.supports_hidden_states(Chroma())


class FluxJointTransformerBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.ff_a, self.ff_b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(
        self, hidden_states_a: Tensor, hidden_states_b: Tensor, temb: Tensor, image_rotary_emb: Tensor
    ) -> tuple[Tensor, Tensor]:
        shared = 0.3 * torch.cat((hidden_states_a, hidden_states_b), dim=1).mean(dim=1, keepdim=True)
        shared = shared + temb[:, None] + image_rotary_emb.mean()
        image = hidden_states_a + self.ff_a(hidden_states_a + shared)
        return image, hidden_states_b + self.ff_b(hidden_states_b + shared)


class JoinedBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.proj_out = nn.Linear(width, width)

    def forward(
        self, hidden_states_a: Tensor, hidden_states_b: Tensor, temb: Tensor, image_rotary_emb: Tensor
    ) -> tuple[Tensor, Tensor]:
        shared = 0.3 * hidden_states_a.mean(dim=1, keepdim=True) + temb[:, None] + image_rotary_emb.mean()
        return hidden_states_a + self.proj_out(hidden_states_a + shared), hidden_states_b


JoinedBlock.__name__ = "FluxSingleTransformerBlock"


class RoPEEmbedding(nn.Module):
    def forward(self, ids: Tensor) -> Tensor:
        """Return (B, 1, S, 3, 2, 2): a rotation matrix for each position id."""
        cosine, sine = ids.cos(), ids.sin()
        return torch.stack([cosine, -sine, sine, cosine], dim=-1).unflatten(-1, (2, 2)).unsqueeze(1)


class FluxDiT(nn.Module):
    """Stands in for the class of DiffSynth-Studio: its forward never runs, the trainer calls the parts one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embedder, self.time_embedder = RoPEEmbedding(), nn.Linear(1, 16)
        self.x_embedder, self.context_embedder = nn.Linear(8, 16), nn.Linear(12, 16)
        self.blocks = nn.ModuleList(FluxJointTransformerBlock(16) for _ in range(2))
        self.single_blocks = nn.ModuleList(JoinedBlock(16) for _ in range(2))
        self.final_proj_out = nn.Linear(16, 8)
        self.checkpoint: Any = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Any) -> None:
        self.checkpoint = gradient_checkpointing_func

    def forward(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("this forward never runs")

    def __call__(self, latents: Tensor, image_ids: Tensor, prompt_emb: Tensor, timestep: Tensor) -> Tensor:
        call = self.checkpoint or (lambda block, *args: block(*args))
        temb = self.time_embedder(timestep[:, None])
        image, text = self.x_embedder(latents), self.context_embedder(prompt_emb)
        rotary = self.pos_embedder(torch.cat((torch.zeros(1, text.shape[1], 3), image_ids), dim=1))
        for block in self.blocks:
            image, text = call(block, image, text, temb, rotary)
        joint = torch.cat((text, image), dim=1)
        for block in self.single_blocks:
            joint, text = call(block, joint, text, temb, rotary)
        return self.final_proj_out(joint[:, text.shape[1] :])


def diffsynth_inputs(model: nn.Module, batch_size: int, references: int = 0, text: int = 21) -> dict[str, Any]:
    inputs = original_inputs(model, batch_size, references)
    return {
        "latents": inputs["img"],
        "image_ids": inputs["img_ids"][:1],
        "prompt_emb": torch.randn(batch_size, text, 12),
        "timestep": inputs["timesteps"],
    }


class TestFluxDiT(AdapterConformance):
    family = "flux"
    tiny_model = FluxDiT
    example_inputs = diffsynth_inputs
    depth = 4

    @staticmethod
    def longer_text(inputs):
        return inputs | {"prompt_emb": torch.randn(2, 30, 12)}

    # With re-entrant checkpoints the first block would run without gradients, indistinguishable from validation.
    @pytest.mark.parametrize("mode", ["non-reentrant", "no early stop"])
    def test_checkpointing_keeps_the_gradient(self, model: nn.Module, inputs: dict[str, Any], mode: str) -> None:
        super().test_checkpointing_keeps_the_gradient(model, inputs, mode)


class TestKontextOfFluxDiT(TestFluxDiT):
    example_inputs = partial(diffsynth_inputs, references=1)

    @pytest.mark.parametrize(("tokens", "counted"), [("target", slice(8)), ("all", slice(None))])
    def test_references_count_only_when_asked(self, tokens: str, counted: slice) -> None:
        model = randomise_weights(FluxDiT())
        seen: list[Tensor] = []
        model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output[0]))
        model.single_blocks[1].register_forward_hook(lambda module, args, output: seen.append(output[0][:, 21:]))
        loss = attached_loss(model, diffsynth_inputs(model, 2, references=1), tokens, teacher=4)
        cosine_BS = torch.cosine_similarity(*seen, dim=-1)
        torch.testing.assert_close(loss, -cosine_BS[:, counted].mean())
