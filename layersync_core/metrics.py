"""Running means that stay on the device until they are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from layersync_core.errors import LayerSyncError
from layersync_core.protocol import Term

_BUILT_IN = "layersync"
_HOSTS = ("loss", "step")


def total(values: Sequence[Tensor]) -> Tensor:
    """Return the sum of scalars on the first one's device, since a model split over devices has terms on several."""
    result, *others = values
    for value in others:
        result = result + value.to(result.device)
    return result


def check_term(term: Any, owner: str) -> None:
    """Raise LayerSyncError unless a regularizer or an objective returned a Term of scalar tensors.

    Args:
        term: What it returned.
        owner: Kind and name of its source, for the error.
    """
    if not isinstance(term, Term):
        raise LayerSyncError(f"{owner} returned a {type(term).__name__}; expected a Term")
    for name, value in (("loss", term.loss), *term.metrics.items()):
        if not isinstance(value, Tensor) or value.ndim:
            shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise LayerSyncError(f"{owner} returned {name} as {shape}; expected a scalar tensor")


class Meter:
    """Collects scalar tensors by name; reading gives their means and starts over. Nothing here waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._owners: dict[str, str] = {}

    def claim(self, name: str, owner: str) -> None:
        """Reserve a name for one regularizer, since two under one name would be averaged.

        Raises:
            LayerSyncError: The name belongs to another regularizer, LayerSync or the host.
        """
        holder = self._owners.get(name, owner)
        if name in _HOSTS:
            holder = "the trainer"
        elif name.startswith(f"{_BUILT_IN}_"):
            holder = _BUILT_IN
        if holder != owner:
            raise LayerSyncError(
                f"regularizer {owner} returned a metric {name!r}, a name that belongs to {holder}; call it "
                f"{owner}_{name}"
            )
        self._owners[name] = owner

    def add(self, name: str, value: Tensor, owner: str) -> None:
        """Add a value to the mean of a name, which is claimed for its owner."""
        if self._owners.get(name) != owner:
            self.claim(name, owner)
        # Copied, so that later in-place changes of the given or the read tensor don't affect the other.
        value = value.detach().to(torch.float32, copy=True)
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1

    def __len__(self) -> int:
        return len(self._counts)

    def read(self) -> dict[str, Tensor]:
        """Return ``name -> mean since the last read`` as 0-dim fp32 tensors; empty when nothing was added."""
        sums, counts = self._sums, self._counts
        self._sums, self._counts = {}, {}
        return {name: total if counts[name] == 1 else total / counts[name] for name, total in sums.items()}
