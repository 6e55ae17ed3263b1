"""One argument of a forward: the value to try, and the source code that creates it in ``tiny.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BATCH, TEXT = "batch_size", "text"
"""Sizes that are names in the source code: samples, and text tokens."""

Axis = int | str


@dataclass(frozen=True)
class Given:
    """The value of an argument.

    Attributes:
        kind: ``noise``, ``unit`` (uniform in [0, 1)), ``steps`` (whole numbers below 1000), ``indices`` (0 or 1),
            ``mask`` (true), ``ones``, ``whole_ones``, ``zeros``, ``lengths`` (whole numbers, all equal to the text's
            length), ``positions`` (of the sample's tokens, one row each), ``value``, or ``repeated``, a list with one
            value per sample.
        shape: Its axes: numbers, ``BATCH`` and ``TEXT``, or a sum of ``TEXT`` and a number. For ``positions`` the sizes
            of a grid; for ``lengths`` those of the tensor.
        axes: A letter for each axis: those of the sample as ``Tiny.axes`` has them, D for a width.
        listed: A list of samples, each without the first axis.
        times: A list of this many tensors, such as one per block; 0 for a single tensor.
        value: For ``value`` and ``repeated``: the literal value.
    """

    kind: str
    shape: tuple[Axis, ...] = ()
    axes: str = ""
    listed: bool = False
    times: int = 0
    value: Any = None

    def make(self, sizes: Mapping[str, int]) -> Any:
        """Return the value.

        Args:
            sizes: How large ``BATCH`` and ``TEXT`` are.
        """
        if self.kind == "value":
            return self.value
        if self.kind == "repeated":
            return [self.value] * sizes[BATCH]
        if self.listed:
            return [self._tensor(sizes, self.shape[1:]) for _ in range(sizes[BATCH])]
        if self.times:
            return [self._tensor(sizes, self.shape) for _ in range(self.times)]
        return self._tensor(sizes, self.shape)

    def source(self) -> str:
        """Return the expression that creates it, in which ``torch``, ``batch_size`` and ``text`` may be used."""
        if self.kind == "value":
            return repr(self.value)
        if self.kind == "repeated":
            return f"[{self.value!r}] * {BATCH}"
        if self.listed:
            return f"[{self._source(self.shape[1:])} for _ in range({BATCH})]"
        if self.times:
            return f"[{self._source(self.shape)} for _ in range({self.times})]"
        return self._source(self.shape)

    def uses(self, axis: str) -> bool:
        """Return whether a named size is one of its axes."""
        return any(axis in str(size).split(" + ") for size in self.shape) or (self.kind == "lengths" and axis == TEXT)

    def _tensor(self, sizes: Mapping[str, int], shape: tuple[Axis, ...]) -> Tensor:
        numbers = [_number(axis, sizes) for axis in shape]
        if self.kind == "positions":
            return torch.cartesian_prod(*(torch.arange(float(number)) for number in numbers))
        makers: dict[str, Any] = {
            "noise": torch.randn,
            "unit": torch.rand,
            "steps": lambda shape: torch.randint(0, 1000, shape),
            "indices": lambda shape: torch.randint(0, 2, shape),
            "mask": lambda shape: torch.ones(shape, dtype=torch.bool),
            "ones": torch.ones,
            "whole_ones": lambda shape: torch.ones(shape, dtype=torch.long),
            "zeros": torch.zeros,
            "lengths": lambda shape: torch.full(shape, sizes[TEXT]),
        }
        made: Tensor = makers[self.kind](tuple(numbers))
        return made

    def _source(self, shape: tuple[Axis, ...]) -> str:
        sizes = ", ".join(map(str, shape))
        if self.kind == "positions":
            return f"torch.cartesian_prod({', '.join(f'torch.arange({size}.0)' for size in shape)})"
        whole = f"({sizes},)" if len(shape) == 1 else f"({sizes})"
        return {
            "noise": f"torch.randn({sizes or '()'})",
            "unit": f"torch.rand({sizes or '()'})",
            "steps": f"torch.randint(0, 1000, {whole})",
            "indices": f"torch.randint(0, 2, {whole})",
            "mask": f"torch.ones({sizes}, dtype=torch.bool)",
            "ones": f"torch.ones({sizes})",
            "whole_ones": f"torch.ones({sizes}, dtype=torch.long)",
            "zeros": f"torch.zeros({sizes})",
            "lengths": f"torch.full({whole}, {TEXT})",
        }[self.kind]


def _number(axis: Axis, sizes: Mapping[str, int]) -> int:
    """Return how large an axis is."""
    if isinstance(axis, int):
        return axis
    return sum(sizes[part] if part in sizes else int(part) for part in axis.split(" + "))
