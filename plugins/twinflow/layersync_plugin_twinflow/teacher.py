"""The teacher: a moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """An exponential moving average of a model's trained weights, as buffers: saved and restored with the run.

    Args:
        model: The bare model.
        decay: The average's decay; the first steps use (1 + n) / (10 + n), which is less.
    """

    updates: Tensor

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self._decay = decay
        # A weight with several names has one average, which is used in each of its places.
        self._places: list[tuple[str, nn.Parameter, list[tuple[nn.Module, str]]]] = []
        by_weight: dict[int, list[tuple[nn.Module, str]]] = {}
        for name, weight in model.named_parameters(remove_duplicate=False):
            if not weight.requires_grad:
                continue
            owner, _, own_name = name.rpartition(".")
            if id(weight) not in by_weight:
                by_weight[id(weight)] = []
                key = name.replace(".", "/")  # a buffer's name may have no dot
                self._places.append((key, weight, by_weight[id(weight)]))
                wide = weight.dtype if weight.dtype == torch.float64 else torch.float32
                self.register_buffer(key, weight.detach().to(wide, copy=True))
            by_weight[id(weight)].append((model.get_submodule(owner), own_name))
        # Also on the device, so that it is restored with the rest and nothing has to wait for it.
        self.register_buffer("updates", torch.zeros((), dtype=torch.float32))

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the weights after an optimiser step."""
        self.updates += 1
        share = 1 - torch.clamp((1 + self.updates) / (10 + self.updates), max=self._decay)
        for key, weight, _ in self._places:
            average = self.get_buffer(key)
            average.lerp_(weight.detach().to(average.dtype), share.to(average))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the model's weights by the averages inside the context, in which nothing may need gradients."""
        try:
            for key, weight, places in self._places:
                average = nn.Parameter(self.get_buffer(key).to(weight.dtype), requires_grad=False)
                for module, name in places:
                    setattr(module, name, average)
            yield
        finally:
            for _, weight, places in self._places:
                for module, name in places:
                    setattr(module, name, weight)
