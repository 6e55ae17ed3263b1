"""Running means that stay on the device until somebody reads them."""

from __future__ import annotations

import torch
from torch import Tensor


class Meter:
    """Collect scalar tensors by name; reading gives their means and starts anew. Nothing here waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add a value to the mean of a name."""
        value = value.detach().float()
        self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._counts[name] = self._counts.get(name, 0) + 1

    def __len__(self) -> int:
        return len(self._counts)

    def read(self) -> dict[str, Tensor]:
        """Return ``name -> mean since the last read`` as 0-dim fp32 tensors; empty when nothing was added."""
        with torch.no_grad():
            means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self._sums.clear()
        self._counts.clear()
        return means
