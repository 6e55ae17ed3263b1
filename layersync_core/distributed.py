"""The processes of one training."""

from __future__ import annotations

import torch.distributed as dist


def several_ranks() -> bool:
    """Return whether this process is one of several ranks that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def first_rank() -> bool:
    """Return whether this process is the one that speaks for all that train together."""
    return not several_ranks() or dist.get_rank() == 0
