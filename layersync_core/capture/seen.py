"""Which tokens a loss sees: those where its gradient is nonzero."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def seen_tokens(gradient: Tensor, own: Tensor | int = 0) -> Tensor:
    """Return (B, S) bool, True where a gradient (B, …, D) or (S, D) differs from a known part of it.

    Args:
        gradient: Gradient of a tensor of hidden states.
        own: The part of it that does not count.
    """
    seen = (gradient != own).any(-1)
    return seen.flatten(1) if gradient.ndim > 2 else seen[None]


def gradients(of: Tensor, tensors: Sequence[Tensor], weights: Tensor | None = None) -> list[Tensor | None]:
    """Return the gradients of a tensor with respect to others, None where there is none; its graph is kept.

    Args:
        of: A scalar, or any tensor together with weights.
        tensors: Those that need no gradient get None.
        weights: The gradient to start with, of the same shape as ``of``.
    """
    asked = [tensor for tensor in tensors if tensor.requires_grad]
    if not asked or not of.requires_grad:
        return [None] * len(tensors)
    # Runs only the nodes in between: no parameter gets a gradient, and no DDP hook runs.
    found = iter(torch.autograd.grad(of, asked, weights, retain_graph=True, allow_unused=True))
    return [next(found) if tensor.requires_grad else None for tensor in tensors]
