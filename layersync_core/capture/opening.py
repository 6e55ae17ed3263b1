"""Whether a forward that begins is a training forward, whose output may end up in a loss."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from layersync_core import _compat


class Opening:
    """What every hook-based capture checks when a forward begins.

    Attributes:
        enabled: Whether anything is still to be captured.
    """

    def __init__(self) -> None:
        self.enabled = True
        self._pauses = 0
        self._skipped = ""  # how the last forward ran that wasn't held

    def _opens(self) -> bool:
        closed = self._why_closed()
        self._skipped = closed or self._skipped
        return closed is None

    def _why_closed(self) -> str | None:
        """Return why a forward must not be held, in words; empty for a recomputation, None where it must be."""
        if not self.enabled:
            return "after the end of the schedule"
        # Grad mode, not module.training: several trainers train in eval mode.
        if not torch.is_grad_enabled():
            return "under torch.no_grad()"
        if self._pauses:
            return "inside paused()"
        if torch.compiler.is_compiling():
            return None  # compiled code is neither of these, and the checks themselves would break the graph
        if _compat.inside_transform():
            return "under torch.func, whose gradients no loss outside of it has"
        return "" if _compat.inside_backward() else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the forwards inside the context alone."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1
