"""Checks that training through an adapter gives exactly the gradients of the loss's definition, whatever else runs."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from layersync_core.attachment import Attachment
from layersync_core.capture.graph import tensors_in
from layersync_core.losses.pairing import suggest_pair
from layersync_core.protocol import Block
from layersync_core.testing.arguments import cast, perturbed
from layersync_core.testing.probe import find_tokens, raw_outputs, seed_everything
from layersync_core.testing.subject import Subject, gradients, masks_of, to_bf16

_AS_RETURNED = (
    "your own capture() must provide the tokens as the block returned them, with their graph, neither detached nor "
    "changed"
)
_ORDER = "blocks that are listed later ran before it: write stacks in the order in which the blocks run"
_KEEP_THE_OBJECT = (
    "your own capture() must store the very object that the block returned and slice it only in collect(): what a hook "
    "computes from it has no gradient under re-entrant checkpointing"
)
_LEAVE_ALONE = (
    "your own capture() must ignore forwards without gradients, those inside paused(), and copies of the model, which "
    "inherit its hooks"
)


class TrainingChecks(Subject):
    """Checks of what happens in a training step."""

    def test_hooks_change_nothing(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """Outputs are bit-identical while attached, state_dict is the same, and remove() leaves no hook."""
        keys, hooks = list(model.state_dict()), _hooks(model)
        seed_everything(2)
        plain = list(tensors_in(_values(model(**inputs))))
        with self._attach(model):
            seed_everything(2)
            attached = list(tensors_in(_values(model(**inputs))))
            self._check(
                list(model.state_dict()) == keys,
                "attaching changed the state_dict",
                "your own capture() must only register hooks, no modules and no buffers",
            )
        same = all(torch.equal(one, other) for one, other in zip(plain, attached, strict=True))
        self._check(
            same and len(plain) > 0,
            "the output differs while attached",
            "your own hooks must return None; the model must return tensors, the same ones for the same seed",
        )
        self._check(
            _hooks(model) == hooks,
            "remove() left a hook behind",
            "it must remove every handle that capture() registered",
        )

    def test_gradient_equals_the_direct_one(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """For every pair of compatible layers, the gradient is the loss's, up to the student and not beyond."""
        blocks = self.adapter.list_blocks(model)
        for student, teacher in permutations(blocks, 2):
            if (student.width, student.stage) != (teacher.width, teacher.stage):
                continue
            expected = self._direct_gradients(model, inputs, student, teacher)
            with self._attach(model, student, teacher) as sync:
                found = self._gradients(model, inputs, sync)
            self._same_gradients(found, expected, f"{student} to {teacher}", _AS_RETURNED)
            own = {f"{student.path}.{name}" for name, _ in model.get_submodule(student.path).named_parameters()}
            self._check(
                bool(own & expected.keys()),
                f"no gradient reaches {student}",
                "stacks must list blocks whose output depends on their own weights",
            )
            later = tuple(f"{block.path}." for block in blocks[student.index + 1 :])
            self._check(
                not any(name.startswith(later) for name in expected),
                f"a gradient passes {student}",
                _ORDER,
            )

    @pytest.mark.parametrize("mode", ["non-reentrant", "no early stop", "reentrant"])
    def test_checkpointing_keeps_the_gradient(self, model: nn.Module, inputs: dict[str, Any], mode: str) -> None:
        """Gradient checkpointing, switched on after attaching, changes no gradient."""
        # In diffusers every model has the method, but for some it raises.
        can = hasattr(model, "enable_gradient_checkpointing") and getattr(
            model, "_supports_gradient_checkpointing", True
        )
        if not can:
            pytest.skip(f"{type(model).__name__} has no enable_gradient_checkpointing()")
        run = partial(checkpoint, use_reentrant=mode == "reentrant")
        if mode == "reentrant" and not self._takes_reentrant(model, inputs, run):
            pytest.skip(
                f"{type(model).__name__} gives its blocks arguments that re-entrant checkpointing does not take"
            )
        # Re-entrant checkpointing loses all gradients of the first block if none of its inputs requires one.
        for tensor in tensors_in(inputs[self._sample(inputs)]):
            tensor.requires_grad_(True)
        with self._attach(model) as sync:
            expected = self._gradients(model, inputs, sync)
            try:
                model.enable_gradient_checkpointing(gradient_checkpointing_func=run)  # type: ignore[operator]
            except (ValueError, NotImplementedError) as error:
                if "support" not in str(error):
                    raise
                pytest.skip(f"{type(model).__name__}: {error}")
            with set_checkpoint_early_stop(mode != "no early stop"):
                found = self._gradients(model, inputs, sync, hint=_KEEP_THE_OBJECT)
        self._same_gradients(found, expected, mode, _KEEP_THE_OBJECT)

    def test_other_forwards_leave_the_states_alone(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """A forward without gradients, inside paused(), or of a copy changes no gradient."""
        others = perturbed(inputs, [self._sample(inputs)])
        with self._attach(model) as sync:
            expected = self._gradients(model, inputs, sync)
            twin = copy.deepcopy(model)

            def disturb() -> None:
                with torch.no_grad():
                    model(**others)
                with sync.paused():
                    model(**others)
                twin(**others)

            found = self._gradients(model, inputs, sync, disturb, hint=_LEAVE_ALONE)
        self._same_gradients(found, expected, "with other forwards between", _LEAVE_ALONE)

    @pytest.mark.parametrize("mode", ["bf16", "autocast"])
    def test_low_precision_works(self, model: nn.Module, inputs: dict[str, Any], mode: str) -> None:
        """In bf16 and under autocast the loss is a finite fp32 scalar with a gradient at the student."""
        if mode == "bf16":
            model, inputs = to_bf16(model), cast(inputs, torch.bfloat16)
        with self._attach(model) as sync:
            with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
                model(**inputs)
            loss = self._loss(model, inputs, sync)
            loss.backward()
        self._check(
            loss.dtype == torch.float32 and bool(loss.isfinite()),
            f"the loss is {loss}",
            "if the model itself overflows in bf16, give the tiny model smaller weights",
        )
        self._check(
            any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()),
            "there is no gradient",
            _AS_RETURNED,
        )

    def test_lora_gets_the_gradient(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        """LoRA on the linear layers of a frozen model, injected by peft, gets gradients only up to the student."""
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
            names = self._gradients(model, inputs, sync).keys()
        self._check(
            bool(names) and all("lora" in name for name in names), "the LoRA weights get no gradient", _AS_RETURNED
        )
        self._check(
            not any(name.startswith(f"{teacher.path}.") for name in names),
            f"a gradient passes {student}",
            _ORDER,
        )

    def _takes_reentrant(self, model: nn.Module, inputs: dict[str, Any], run: Callable[..., Any]) -> bool:
        """Return whether the model itself works under re-entrant checkpointing.

        It takes no keyword arguments, and goes back through the graph of a tensor in a tuple once per block.
        """
        twin = copy.deepcopy(model)
        twin.enable_gradient_checkpointing(gradient_checkpointing_func=run)  # type: ignore[operator]
        try:
            made = [tensor.float().sum() for tensor in tensors_in(twin(**inputs)) if tensor.requires_grad]
            if made:
                torch.stack(made).sum().backward()
        except (ValueError, RuntimeError) as error:
            # torch's messages about its re-entrant checkpoint
            if "Unexpected keyword arguments" in str(error) or "through the graph a second time" in str(error):
                return False
            raise
        return True

    def _gradients(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        sync: Attachment,
        between: Callable[[], None] | None = None,
        hint: str = "",
    ) -> dict[str, Tensor]:
        """Return the gradients of the attached loss of one forward, optionally with something else run after it."""
        model(**inputs)
        if between is not None:
            between()
        return gradients(model, self._loss(model, inputs, sync, hint))

    def _direct_gradients(
        self, model: nn.Module, inputs: dict[str, Any], student: Block, teacher: Block
    ) -> dict[str, Tensor]:
        """Return the gradients of the loss's definition, from outputs that separate hooks have stored."""
        seen = self._look(model, inputs)
        modules = {block.index: model.get_submodule(block.path) for block in (student, teacher)}
        with raw_outputs(modules) as outputs:
            model(**inputs)
        student_BSD, teacher_BSD = (
            find_tokens(seen.states[block.index], outputs[block.index][0]) for block in (student, teacher)
        )
        cosine_BS = torch.cosine_similarity(student_BSD.double(), teacher_BSD.detach().double(), dim=-1)
        mask_BS = torch.ones_like(cosine_BS)
        for mask in masks_of(seen).values():
            mask_BS = mask_BS * mask
        return gradients(model, -(cosine_BS * mask_BS).sum() / mask_BS.sum())

    def _same_gradients(
        self, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], when: str, hint: str
    ) -> None:
        self._check(
            found.keys() == expected.keys(),
            f"{when}: gradients at {', '.join(sorted(found.keys() ^ expected.keys()))} differ",
            hint,
        )
        largest = max(gradient.norm() for gradient in expected.values())
        for name, gradient in expected.items():
            error = (found[name] - gradient).norm()
            # Relative, unless a gradient is as small as the rounding error of the largest one.
            self._check(
                bool(error < 1e-3 * gradient.norm()) or bool(error < 1e-6 * largest),
                f"{when}: {name} is off by {error / gradient.norm():.2e}",
                hint,
            )


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def _values(output: Any) -> Any:
    return output if isinstance(output, (Tensor, list, tuple, Mapping)) else list(vars(output).values())
