# Shapes: B batch, S tokens, D channels
"""One family in one regime: what runs, what its gradients must be, and how it ended."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core import Attachment, CaptureError, attach
from layersync_core.families.registry import load_tiny
from tests.models import (
    assert_same_gradients,
    gradients_by_autograd,
    has_states_by_hand,
    mean_cosine,
    randomise,
    settings,
    states_by_hand,
)

FAMILIES = ("flux", "wan", "sd3", "z_image", "hunyuan_video")
TOLERANCE = 1e-5
ROUNDED = 3e-2  # where bf16 or fp16 takes part
# Two orders of one sum differ by fp32's digits of the largest gradients: smaller ones have fewer digits in common.
FLOOR = 0.1
_WEIGHT = 1.0

Around = Callable[[], AbstractContextManager[Any]]
Gradients = Mapping[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: ``right``, ``refused``, ``not possible upstream`` or ``needs a second device``, and why."""

    kind: str
    reason: str = ""


RIGHT = Outcome("right")
NO_DEVICE = Outcome("needs a second device")
WRONG = "wrong"
KINDS = ("right", "refused", "not possible upstream", "needs a second device")


class NoDevice(Exception):  # noqa: N818
    """This machine has one device."""


class Cell:
    """A model of a family and its inputs, to be trained with LayerSync or, to see what is upstream's, without.

    Args:
        family: Family id.
        sync: Whether LayerSync is attached where the regime asks for it.
        short: Take a model of two blocks, for what compiles.
        batch: Samples.

    Attributes:
        copies: What is expected is computed on a copy of the model; otherwise on the model itself, before attaching.
    """

    def __init__(self, family: str, sync: bool = True, short: bool = False, batch: int = 2) -> None:
        self.family = family
        tiny = load_tiny(family)
        torch.manual_seed(0)
        self.model: Any = randomise(tiny.tiny_model())
        self.inputs = tiny.example_inputs(self.model, batch)
        self.pair = (2, 4)
        if short:
            _shorten(self.model)
            self.pair = (1, 2)
        self.trained: nn.Module = self.model
        self.tolerance = TOLERANCE
        self.expected: Gradients = {}
        self.found: list[Gradients] = []
        self.copies = True
        self._on = sync
        self._sync: Attachment | None = None

    def expect(self, trained: nn.Module | None = None, around: Around = nullcontext, scale: float = 1.0) -> None:
        """Expect the gradients of a copy of the model in its current state, without LayerSync's hooks.

        Args:
            trained: What is trained; default: the model.
            around: Context of the forward.
            scale: The loss is multiplied by it, and the gradients divided.
        """
        self.trained = trained if trained is not None else self.model
        own = self.model, self.trained
        model, trained = copy.deepcopy(own) if self.copies else own
        with around():
            output, states_BSD = forward(model, self.inputs, by_hand=self.tolerance < ROUNDED)
            main = main_loss(output)
            student_BSD, teacher_BSD = (states_BSD[number - 1].float() for number in self.pair)
            term = -_WEIGHT * mean_cosine(student_BSD, teacher_BSD)
        self.expected, without = (
            {name: gradient / scale for name, gradient in gradients_by_autograd(loss * scale, trained).items()}
            for loss in (main + term, main)
        )
        assert _difference(without, self.expected, self.tolerance), "the test cannot tell a term from none"

    def attach(self, model: Any = None) -> None:
        """Attach LayerSync to the model or to a wrapper of it."""
        if self._on:
            self._sync = attach(self.model if model is None else model, settings(*self.pair, _WEIGHT))

    def total(self, run: Callable[..., Any], inputs: Mapping[str, Any] | None = None) -> Tensor:
        """Run a forward and return the main loss with LayerSync's term."""
        main = main_loss(run(**(self.inputs if inputs is None else inputs)))
        return self._sync.apply(main) if self._sync is not None else main

    def train(self, run: Callable[..., Any] | None = None, around: Around = nullcontext) -> None:
        """Take two steps and keep the gradients of each."""
        for _ in range(2):
            with around():
                loss = self.total(self.model if run is None else run)
            loss.backward()
            self.keep()

    def keep(self) -> None:
        """Keep the gradients of a step."""
        plain = {}
        for name, parameter in self.trained.named_parameters():
            gradient = parameter.grad
            if gradient is not None:
                plain[bare(name)] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
        self.found.append(plain)
        self.trained.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Detach LayerSync."""
        if self._sync is not None:
            self._sync.remove()


Regime = Callable[[Cell], None]


def run(make: Callable[[bool], Cell], regime: Regime) -> Outcome:
    """Run a regime and say how it ended; what fails is run without LayerSync too, to see whose failure it is.

    Args:
        make: Returns a new cell, with LayerSync or without.
        regime: Sets the cell up and trains it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about what the regimes are
        cell = make(True)
        cell.expect()
        try:
            regime(cell)
        except CaptureError as error:
            # The first step has ended and its optimiser may have run.
            return Outcome("refused" if not cell.found else WRONG, str(error))
        except NoDevice:
            return NO_DEVICE
        except Exception as error:
            plain = make(False)
            plain.expect()
            try:
                regime(plain)
            except Exception as upstream:
                return Outcome("not possible upstream", _first_line(upstream))
            return Outcome(WRONG, f"{type(error).__name__}: {_first_line(error)}")
        finally:
            cell.close()
        return judge(cell)


def judge(cell: Cell) -> Outcome:
    """Compare every step's gradients with what they must be."""
    if not cell.found:
        return Outcome(WRONG, "no step was taken")
    for step, found in enumerate(cell.found):
        different = _difference(found, cell.expected, cell.tolerance)
        if different:
            return Outcome(WRONG, f"step {step + 1}: the gradient of {different} differs")
    return RIGHT


def main_loss(output: Any) -> Tensor:
    """Return a main loss of whatever a model returns."""
    samples = getattr(output, "sample", output)
    samples = samples if isinstance(samples, (list, tuple)) else [samples]
    return torch.stack([sample.float().square().mean() for sample in samples]).mean()


# What blocks return: their stacks, and the image tokens in it.
_BLOCKS: dict[str, tuple[tuple[str, ...], Callable[[Any], Tensor]]] = {
    "FluxTransformer2DModel": (("transformer_blocks", "single_transformer_blocks"), lambda output: output[1]),
    "WanTransformer3DModel": (("blocks",), lambda output: output),
    "SD3Transformer2DModel": (("transformer_blocks",), lambda output: output[1]),  # (text, image)
    "ZImageTransformer2DModel": (("layers",), lambda output: output[:, :16]),  # 4x4 tokens, padding, caption
    "HunyuanVideoTransformer3DModel": (
        ("transformer_blocks", "single_transformer_blocks"),
        lambda output: output[0],  # (video, text)
    ),
}


def forward(model: Any, inputs: Mapping[str, Any], by_hand: bool) -> tuple[Any, list[Tensor]]:
    """Return what a model returns, and every block's image tokens, (B, S, D), as copies that plain hooks make.

    Args:
        model: Not compiled, not checkpointed.
        inputs: Arguments of its forward.
        by_hand: Take the tokens from a second forward that is written out, for the families that have one. With
            rounding it would not do: the gradients of two forwards are rounded in two places.
    """
    stacks, select = _BLOCKS[type(model).__name__]
    kept: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda module, args, output: kept.append(select(output).clone()))
        for stack in stacks
        for block in getattr(model, stack)
    ]
    output = model(**inputs)
    for handle in handles:
        handle.remove()
    return output, states_by_hand(model, dict(inputs)) if by_hand and has_states_by_hand(model) else kept


def bare(name: str) -> str:
    """Return a parameter's name without what wrappers around blocks add."""
    for wrapper in ("_checkpoint_wrapped_module.", "_orig_mod."):
        name = name.replace(wrapper, "")
    return name


def blocks(model: nn.Module) -> list[tuple[nn.ModuleList, int]]:
    """Return where each block of a model stands, in execution order."""
    stacks = [getattr(model, name, None) for name in _STACKS]
    return [(stack, index) for stack in stacks if stack is not None for index in range(len(stack))]


_STACKS = ("transformer_blocks", "single_transformer_blocks", "blocks", "layers")


def _shorten(model: nn.Module) -> None:
    """Leave two blocks: the first of each stack, or the first and the last of the only one."""
    stacks = [name for name in _STACKS if hasattr(model, name)]
    for name in stacks:
        stack = getattr(model, name)
        setattr(model, name, nn.ModuleList([stack[0]] if len(stacks) == 2 else [stack[0], stack[-1]]))


def _difference(found: Gradients, expected: Gradients, tolerance: float) -> str:
    """Return the name of a gradient that differs; empty when there is none."""
    try:
        assert_same_gradients(found, expected, tolerance, FLOOR)
    except AssertionError as error:
        return str(error).split("\n")[0] or "something"
    return ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
