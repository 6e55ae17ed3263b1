"""Switch a term off when the moving mean of its score reaches a threshold, without waiting for the device."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from layersync_core import several_ranks


def _lag(device: torch.device) -> int:
    """Return how many losses to wait before reading a value on the host: by then it has long been computed."""
    return 0 if device.type == "cpu" else 8


class SimilarityCutoff(nn.Module):
    """The moving mean and the decision, kept on the device and saved with the run.

    A factor on the device switches the term off in that very step. The host learns of it after a fixed number of
    losses, the same on all ranks, and then stops the capture too.

    Args:
        threshold: None: never cut off.
        decay: The moving mean's decay.
        permanent: Stay off; otherwise come back when the mean falls below the threshold again.
    """

    ema: Tensor
    seen: Tensor
    cut: Tensor

    def __init__(self, threshold: float | None, decay: float, permanent: bool) -> None:
        super().__init__()
        self._threshold, self._decay, self._permanent = threshold, decay, permanent
        for name in ("ema", "seen", "cut"):
            self.register_buffer(name, torch.zeros(()))
        self._waiting: deque[tuple[Tensor, Any]] = deque()
        self.over = False
        """Whether the host knows that the term is off for good."""

    @torch.no_grad()
    def forward(self, score: Tensor) -> Tensor:
        """Take the score of one loss; return 1 if the term is cut off, else 0."""
        if self._threshold is None:
            return self.cut.clone()
        value = score.detach().to(self.ema)
        if several_ranks():
            value = value / dist.get_world_size()
            dist.all_reduce(value)
        usable = value.isfinite()
        mean = torch.where(self.seen > 0, self._decay * self.ema + (1 - self._decay) * value, value)
        self.ema.copy_(torch.where(usable, mean, self.ema))
        self.seen.copy_(torch.maximum(self.seen, usable.float()))
        passed = (self.seen > 0) & (self.ema >= self._threshold)
        self.cut.copy_(torch.maximum(self.cut, passed) if self._permanent else passed)
        if self._permanent:
            self._watch()
        return self.cut.clone()

    def _watch(self) -> None:
        if self.cut.device.type != "cuda":
            self._waiting.append((self.cut.clone(), None))
        else:
            here = torch.empty((), dtype=self.cut.dtype, pin_memory=True)
            here.copy_(self.cut, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            self._waiting.append((here, done))
        if len(self._waiting) > _lag(self.cut.device):
            value, arrived = self._waiting.popleft()
            if arrived is not None:
                arrived.synchronize()
            self.over = self.over or bool(value)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._waiting.clear()
        self.over = self._threshold is not None and self._permanent and bool(self.cut)
