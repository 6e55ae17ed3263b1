"""Measure which tokens in the outputs of a model's modules follow the noisy sample, and not the text.

It runs the model's own forward with hooks on every module, without an adapter, so the result helps somebody whose
adapter is wrong.
"""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core.testing.arguments import perturbed
from layersync_core.testing.probe import raw_outputs, seed_everything

Element = int | str | tuple[int | str, ...] | None
"""Position of a tensor in what a block returns, in the form of ``BlockStack.element``."""

Outputs = Mapping[str, Sequence[Any]]
"""Module path -> what the module returned in each call, in the order in which modules first returned."""


@dataclass(frozen=True)
class Moved:
    """One tensor of hidden states among what a module returned.

    Attributes:
        element: Its position there; None if the module returned only this tensor.
        batched: False for (S, D), the tokens of one sample.
        sequence_first: True for (S, B, D).
        follows: For each of its tokens, whether changing the sample moves it more than changing the text, in every
            sample of the batch.
    """

    element: Element
    batched: bool
    sequence_first: bool
    follows: list[bool]

    @property
    def count(self) -> int:
        """The number of its tokens that follow the sample."""
        return sum(self.follows)

    @property
    def place(self) -> str:
        """Where these tokens are: all, first, last, none or scattered."""
        count = self.count
        if count in (0, len(self.follows)):
            return "all" if count else "none"
        if all(self.follows[:count]):
            return "first"
        return "last" if all(self.follows[-count:]) else "scattered"


@dataclass(frozen=True)
class Measured:
    """Three forwards of a model, identical except for the sample in the second and the text in the third.

    Attributes:
        model: The model.
        batch: Samples in the batch.
        plain: What its modules returned.
        other_sample: The same with another sample.
        other_text: The same with another text.
    """

    model: nn.Module
    batch: int
    plain: Outputs
    other_sample: Outputs
    other_text: Outputs

    def moved(self, path: str) -> list[Moved]:
        """Return the tensors of hidden states that a module's first call returned; empty if it did not run."""
        runs = [outputs.get(path) for outputs in (self.plain, self.other_sample, self.other_text)]
        before, by_sample, by_text = (dict(_states(run[0], self.batch)) if run else {} for run in runs)
        found = []
        for element, state in before.items():
            others = by_sample.get(element), by_text.get(element)
            if others[0] is None or others[1] is None or not others[0].shape == others[1].shape == state.shape:
                continue
            follows = [(other.float() - state.float()).norm(dim=-1) for other in others if other is not None]
            turned = state.ndim == 3 and state.shape[0] != self.batch
            follow = follows[0] > follows[1]
            found.append(Moved(element, state.ndim == 3, turned, _in_every_sample(follow.T if turned else follow)))
        return found

    def lists(self) -> dict[str, int]:
        """Return ``path -> number of blocks`` for the lists of blocks in the model, in the order in which they ran."""
        found: dict[str, int] = {}
        for path, module in self.model.named_modules():
            inside = any(path.startswith(f"{other}.") for other in found)
            if isinstance(module, nn.ModuleList) and len(module) and not inside and self.moved(f"{path}.0"):
                found[path] = len(module)
        return dict(sorted(found.items(), key=lambda item: self.when(f"{item[0]}.0")))

    def when(self, path: str) -> int:
        """Return how many modules had returned before a module first did; all of them if it did not run."""
        order = list(self.plain)
        return order.index(path) if path in self.plain else len(order)

    def embedders(self, count: int, blocks: Sequence[str]) -> list[str]:
        """Return the paths of modules that return the sample's tokens before the blocks run, likeliest first.

        Args:
            count: How many tokens there are.
            blocks: Paths of the lists of blocks.
        """
        first = min(self.when(f"{path}.0") for path in blocks)
        found = []
        for path in list(self.plain)[:first]:
            alone = [moved for moved in self.moved(path) if moved.element is None and moved.batched]
            alone = [moved for moved in alone if not moved.sequence_first]
            inside = any(path == block or path.startswith(f"{block}.") for block in blocks)
            if path and not inside and any(moved.follows == [True] * count for moved in alone):
                found.append(path)
        return sorted(found, key=lambda path: path.count("."))


def measure(model: nn.Module, inputs: Mapping[str, Any], sample: str, text: Sequence[str], batch: int) -> Measured:
    """Run three forwards and keep what every module returned.

    Args:
        model: The model.
        inputs: Its forward's arguments.
        sample: Name of the noisy sample.
        text: Names of the arguments that hold text.
        batch: Samples in the batch.
    """
    runs = []
    for given in (inputs, perturbed(inputs, [sample]), perturbed(inputs, text)):
        seed_everything(2)
        with torch.no_grad(), raw_outputs(dict(model.named_modules())) as outputs:
            model(**given)
        runs.append(outputs)
    return Measured(model, batch, *runs)


def _in_every_sample(follows: Tensor) -> list[bool]:
    """Return S values, True where (B, S) or (S,) bool is True in every sample."""
    found: list[bool] = (follows.all(dim=0) if follows.ndim == 2 else follows).tolist()
    return found


def _states(output: Any, batch: int, at: tuple[int | str, ...] = ()) -> Iterator[tuple[Element, Tensor]]:
    """Yield position and tensor of everything in a block's output that may be hidden states."""
    if isinstance(output, Tensor):
        of_one_sample = output.ndim == 2 and batch == 1
        if of_one_sample or (output.ndim == 3 and batch in output.shape[:2]):
            yield (at if len(at) > 1 else at[0] if at else None), output
    elif isinstance(output, (tuple, list)):
        for index, item in enumerate(output):
            yield from _states(item, batch, (*at, index))
    elif hasattr(output, "__dataclass_fields__"):
        for name, item in vars(output).items():
            yield from _states(item, batch, (*at, name))
