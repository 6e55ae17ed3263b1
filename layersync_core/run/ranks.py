"""Check that the processes of one training do the same."""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist

from layersync_core import _compat
from layersync_core.distributed import several_ranks
from layersync_core.errors import CaptureError

_WAIT = timedelta(minutes=5)
_KEY = "layersync/rank"


def rank() -> int:
    """Return this process's rank; 0 if there is only one process."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK") or 0)


def compare(digest: str) -> None:
    """Compare what this rank trains with what the others train, through the store that they started with.

    Args:
        digest: What this rank trains.

    Raises:
        CaptureError: Another rank trains something else, or does not answer.
    """
    if not several_ranks():
        return
    store = _compat.first_store()
    own = dist.get_rank()
    store.set(f"{_KEY}{own}", digest)
    for other in range(dist.get_world_size()):
        key = f"{_KEY}{other}"
        try:
            store.wait([key], _WAIT)
        except Exception:  # each kind of store raises its own errors
            raise CaptureError(
                f"rank {other} has not said what it trains with LayerSync for {_WAIT.seconds} s; every rank must be "
                "started with it"
            ) from None
        theirs = store.get(key).decode()
        if theirs != digest:
            raise CaptureError(f"ranks disagree: rank {own} trains {digest}, rank {other} trains {theirs}")
