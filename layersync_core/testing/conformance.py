"""What every adapter must hold, as one pytest class to subclass."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import permutations
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from layersync_core.attachment import Attachment
from layersync_core.losses.pairing import suggest_pair
from layersync_core.protocol import Adapter, Block
from layersync_core.session import attach
from layersync_core.testing.probe import (
    find_tokens,
    look,
    perturbed,
    raw_outputs,
    sample_name,
    scatter_weights,
    seed_everything,
    tensors_in,
)

checks: Counter[str] = Counter()
"""Configuration -> how many checks it passed, for a summary."""

_TEXT_NAMES = ("encoder_hidden_states", "txt", "context", "caption", "text", "prompt", "llama", "cap_feats")


class AdapterConformance:
    """Subclass in a pytest file, with an adapter and its tiny model.

    Attributes:
        adapter: The adapter under test.
        tiny_model: Returns a small random model; wrap it in ``staticmethod``.
        example_inputs: Called with the model and a batch size, returns the forward's arguments by name.
        batch_size: Samples in a batch; 1 where the model takes one sample at a time.
        depth: How many blocks the tiny model has. Say it where the model has other lists of blocks, such as refiners.
        longer_text: Called with inputs, returns inputs with more text tokens, the same for the rest. None where the
            model takes no text.
        text: Names of the forward's arguments that hold text; None finds them by the usual names.
    """

    adapter: ClassVar[Adapter]
    tiny_model: ClassVar[Callable[[], nn.Module]]
    example_inputs: ClassVar[Callable[..., dict[str, Any]]]
    depth: ClassVar[int | None] = None
    batch_size: ClassVar[int] = 2
    longer_text: ClassVar[Callable[[dict[str, Any]], dict[str, Any]] | None] = None
    text: ClassVar[Sequence[str] | None] = None

    @pytest.fixture
    def model(self) -> nn.Module:
        """A tiny model whose blocks are not the identity."""
        seed_everything()
        model = type(self).tiny_model()
        scatter_weights(model)
        return model.eval()

    @pytest.fixture
    def inputs(self, model: nn.Module) -> dict[str, Any]:
        """Arguments for a batch."""
        seed_everything(1)
        return type(self).example_inputs(model, self.batch_size)

    def test_knows_the_model(self, model: nn.Module) -> None:
        """The adapter accepts the model, and its subclass as FSDP2 makes it."""
        self._check(self.adapter.supports_hidden_states(model), "supports_hidden_states(model) is False")
        renamed = copy.deepcopy(model)
        renamed.__class__ = type(f"FSDP{type(model).__name__}", (type(model),), {})
        self._check(self.adapter.supports_hidden_states(renamed), "a subclass of the model's class is not recognised")
        other = nn.ModuleList([nn.Linear(2, 2)])
        self._check(not self.adapter.supports_hidden_states(other), "supports_hidden_states() is True for any module")

    def test_blocks_are_numbered_in_execution_order(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """Every listed block exists, runs once in a forward, and in the listed order."""
        blocks = self.adapter.list_blocks(model)
        self._check([block.index for block in blocks] == list(range(len(blocks))), "indices are not 0, 1, 2, …")
        if self.depth is not None:
            self._check(len(blocks) == self.depth, f"{len(blocks)} blocks are listed, the model has {self.depth}")
        ran: list[int] = []
        handles = [
            model.get_submodule(block.path).register_forward_pre_hook(lambda *_, index=block.index: ran.append(index))
            for block in blocks
        ]
        with torch.no_grad():
            model(**inputs)
        for handle in handles:
            handle.remove()
        self._check(ran == [block.index for block in blocks], f"blocks are listed as 0, 1, … but ran as {ran}")

    def test_states_have_the_stated_shape(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """(B, S, D) with the block's width; the grid fills S; masks are (B, S) and leave something."""
        seen = look(self.adapter, model, inputs)
        stages: dict[str, int] = {}
        for block in self.adapter.list_blocks(model):
            state_BSD = seen.states[block.index]
            self._check(
                state_BSD.ndim == 3 and state_BSD.shape[0] == self.batch_size,
                f"{block} has states {tuple(state_BSD.shape)}",
            )
            if block.width is not None:
                self._check(
                    state_BSD.shape[2] == block.width, f"{block} says width {block.width}, has {state_BSD.shape[2]}"
                )
            length = stages.setdefault(block.stage, state_BSD.shape[1])
            self._check(state_BSD.shape[1] == length, f"{block} has {state_BSD.shape[1]} tokens, others have {length}")
        if seen.tokens.grid is not None and len(stages) == 1:
            frames, rows, columns = seen.tokens.grid
            self._check(frames * rows * columns == length, f"grid {seen.tokens.grid} does not fill {length} tokens")
        for mask in (seen.tokens.target, seen.tokens.real):
            if mask is not None:
                self._check(
                    mask.dtype == torch.bool and tuple(mask.shape) == (self.batch_size, length),
                    "a mask is not (B, S) bool",
                )
                self._check(bool(mask.any(dim=1).all()), "a sample has no token that counts")

    def test_tokens_belong_to_the_sample(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """Another sample changes every token more than another text does: none of them is a text token."""
        sample = sample_name(inputs)
        usual = [name for name in inputs if name != sample and any(part in name for part in _TEXT_NAMES)]
        text = usual if self.text is None else self.text
        with torch.enable_grad():
            before = look(self.adapter, model, inputs)
            other_sample = look(self.adapter, model, perturbed(inputs, [sample]))
            other_text = look(self.adapter, model, perturbed(inputs, text))
        for layer, state_BSD in before.states.items():
            by_sample_BS = (other_sample.states[layer] - state_BSD).norm(dim=-1)
            by_text_BS = (other_text.states[layer] - state_BSD).norm(dim=-1)
            real_BS = torch.ones_like(by_sample_BS, dtype=torch.bool)
            # Reference tokens may come from another argument than the sample.
            for mask in (before.tokens.target, before.tokens.real):
                if mask is not None and mask.shape == real_BS.shape:
                    real_BS &= mask
            self._check(
                bool((by_sample_BS > by_text_BS)[real_BS].all()),
                f"layer {layer} has tokens that follow the text and not the sample",
            )

    def test_text_length_leaves_the_tokens_alone(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """More text tokens change no count."""
        longer_text = type(self).longer_text
        if longer_text is None:
            return
        before = look(self.adapter, model, inputs)
        after = look(self.adapter, model, longer_text(inputs))
        for layer, state_BSD in before.states.items():
            self._check(
                after.states[layer].shape == state_BSD.shape, f"layer {layer}: the text's length changes its shape"
            )

    def test_hooks_change_nothing(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """Outputs are bit-identical while attached, state_dict is the same, and remove() leaves no hook."""
        keys, hooks = list(model.state_dict()), _hooks(model)
        seed_everything(2)
        plain = tensors_in(_values(model(**inputs)))
        with self._attach(model):
            seed_everything(2)
            attached = tensors_in(_values(model(**inputs)))
            self._check(list(model.state_dict()) == keys, "attaching changed the state_dict")
        same = all(torch.equal(one, other) for one, other in zip(plain, attached, strict=True))
        self._check(same and len(plain) > 0, "the output differs while attached")
        self._check(_hooks(model) == hooks, "remove() left a hook behind")

    def test_gradient_equals_the_direct_one(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """For every pair of compatible layers: the loss's gradient, up to the student and not beyond."""
        blocks = self.adapter.list_blocks(model)
        for student, teacher in permutations(blocks, 2):
            if (student.width, student.stage) != (teacher.width, teacher.stage):
                continue
            expected = self._direct_gradients(model, inputs, student, teacher)
            with self._attach(model, student, teacher) as sync:
                self._same_gradients(_gradients(model, inputs, sync), expected, f"{student} to {teacher}")
            own = {f"{student.path}.{name}" for name, _ in model.get_submodule(student.path).named_parameters()}
            self._check(bool(own & expected.keys()), f"no gradient reaches {student}")
            later = tuple(f"{block.path}." for block in blocks[student.index + 1 :])
            self._check(not any(name.startswith(later) for name in expected), f"a gradient passes {student}")

    @pytest.mark.parametrize("mode", ["non-reentrant", "no early stop", "reentrant"])
    def test_checkpointing_keeps_the_gradient(self, model: nn.Module, inputs: dict[str, Any], mode: str) -> None:
        """Gradient checkpointing, switched on after attaching, changes no gradient."""
        if not hasattr(model, "enable_gradient_checkpointing"):
            pytest.skip(f"{type(model).__name__} has no enable_gradient_checkpointing()")
        _require_gradient(inputs)
        with self._attach(model) as sync:
            expected = _gradients(model, inputs, sync)
            run = partial(checkpoint, use_reentrant=mode == "reentrant")
            model.enable_gradient_checkpointing(gradient_checkpointing_func=run)  # type: ignore[operator]
            with set_checkpoint_early_stop(mode != "no early stop"):
                self._same_gradients(_gradients(model, inputs, sync), expected, mode)

    def test_other_forwards_leave_the_states_alone(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """A forward without gradients, under paused(), or of a copy changes no gradient."""
        others = perturbed(inputs, [sample_name(inputs)])
        with self._attach(model) as sync:
            expected = _gradients(model, inputs, sync)
            twin = copy.deepcopy(model)

            def disturb() -> None:
                with torch.no_grad():
                    model(**others)
                with sync.paused():
                    model(**others)
                twin(**others)

            self._same_gradients(_gradients(model, inputs, sync, disturb), expected, "with other forwards between")

    @pytest.mark.parametrize("mode", ["bf16", "autocast"])
    def test_low_precision_works(self, model: nn.Module, inputs: dict[str, Any], mode: str) -> None:
        """In bf16 and under autocast the loss is a finite fp32 scalar with a gradient at the student."""
        if mode == "bf16":
            model = _to_bf16(model)
            inputs = {name: _to(value, torch.bfloat16) for name, value in inputs.items()}
        with self._attach(model) as sync:
            with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
                model(**inputs)
            loss = sync.loss()
            loss.backward()
        self._check(loss.dtype == torch.float32 and bool(loss.isfinite()), f"the loss is {loss}")
        self._check(any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()), "there is no gradient")

    def test_lora_gets_the_gradient(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """LoRA on the linear layers of a frozen model, injected by peft, gets gradients up to the student alone."""
        peft = pytest.importorskip("peft")
        model.requires_grad_(False)
        student, teacher = suggest_pair(self.adapter.list_blocks(model))
        linear = [
            f"{block.path}.{name}"
            for block in (student, teacher)
            for name, module in model.get_submodule(block.path).named_modules()
            if isinstance(module, nn.Linear)
        ]
        peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=linear, init_lora_weights=False), model)
        with self._attach(model, student, teacher) as sync:
            names = _gradients(model, inputs, sync).keys()
        self._check(bool(names) and all("lora" in name for name in names), "the LoRA weights get no gradient")
        self._check(not any(name.startswith(f"{teacher.path}.") for name in names), "a gradient passes the student")

    def _attach(self, model: nn.Module, student: Block | None = None, teacher: Block | None = None) -> Attachment:
        if student is None or teacher is None:
            student, teacher = suggest_pair(self.adapter.list_blocks(model))
        settings = {
            "layersync_enabled": True,
            "layersync_student_block": student.index + 1,
            "layersync_teacher_block": teacher.index + 1,
            "layersync_lambda": 1.0,
        }
        return attach(model, settings, adapter=self.adapter)

    def _direct_gradients(
        self, model: nn.Module, inputs: Mapping[str, Any], student: Block, teacher: Block
    ) -> dict[str, Tensor]:
        """Return the gradients of the loss as written down, from outputs that hooks of our own have stored."""
        seen = look(self.adapter, model, inputs)
        modules = {block.index: model.get_submodule(block.path) for block in (student, teacher)}
        with raw_outputs(modules) as outputs:
            model(**inputs)
        student_BSD, teacher_BSD = (
            find_tokens(seen.states[block.index], outputs[block.index][0]) for block in (student, teacher)
        )
        cosine_BS = torch.cosine_similarity(student_BSD.double(), teacher_BSD.detach().double(), dim=-1)
        mask_BS = torch.ones_like(cosine_BS)
        for mask in (seen.tokens.target, seen.tokens.real):
            mask_BS = mask_BS if mask is None else mask_BS * mask
        loss = -(cosine_BS * mask_BS).sum() / mask_BS.sum()
        return _autograd(model, loss)

    def _same_gradients(self, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], when: str) -> None:
        self._check(found.keys() == expected.keys(), f"{when}: gradients at {found.keys() ^ expected.keys()} differ")
        largest = max(gradient.norm() for gradient in expected.values())
        for name, gradient in expected.items():
            error = (found[name] - gradient).norm()
            # Relative, except where a gradient is no more than the rounding of the largest one.
            self._check(
                bool(error < 1e-3 * gradient.norm()) or bool(error < 1e-6 * largest),
                f"{when}: {name} is off by {error / gradient.norm():.2e}",
            )

    def _check(self, condition: bool, otherwise: str) -> None:
        assert condition, otherwise
        checks[f"{type(self).__module__}.{type(self).__name__}"] += 1


def _gradients(
    model: nn.Module, inputs: Mapping[str, Any], sync: Attachment, between: Callable[[], None] | None = None
) -> dict[str, Tensor]:
    model(**inputs)
    if between is not None:
        between()
    return _autograd(model, sync.loss())


def _autograd(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradients that are not zero, by parameter name, as a backward leaves them."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    gradients = {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())
    }
    model.zero_grad(set_to_none=True)
    return gradients


def _require_gradient(inputs: Mapping[str, Any]) -> None:
    # Re-entrant checkpointing loses every gradient of a first block none of whose inputs requires one.
    for tensor in tensors_in(inputs[sample_name(inputs)]):
        tensor.requires_grad_(True)


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def _values(output: Any) -> Any:
    return output if isinstance(output, (Tensor, list, tuple, Mapping)) else list(vars(output).values())


def _to_bf16(model: nn.Module) -> nn.Module:
    model = model.to(torch.bfloat16)
    kept = getattr(model, "_keep_in_fp32_modules", None) or ()  # diffusers loads these in fp32 whatever is asked for
    for name, module in model.named_modules():
        if name.split(".")[-1] in kept:
            module.float()
    return model


def _to(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(_to(item, dtype) for item in value)
    return value
