"""Questions to the autograd graph, asked without running it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction


def reaches_parameter(state: Tensor) -> bool:
    """Return whether a gradient into this tensor would arrive at a parameter.

    A node that hides its inputs (re-entrant checkpointing, other Python functions) counts as reaching one when the
    rest of the graph shows none: what cannot be seen is not refused.
    """
    if state.grad_fn is None:
        return isinstance(state, nn.Parameter) and state.requires_grad
    stack: list[Any] = [state.grad_fn]
    seen = {state.grad_fn}
    opaque = False
    while stack:
        node = stack.pop()
        # A leaf that is no parameter is an activation made to require gradients, which trains nothing.
        if isinstance(getattr(node, "variable", None), nn.Parameter):
            return True
        opaque = opaque or isinstance(node, BackwardCFunction)
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return opaque


def measured(state: Tensor, span: slice, record: Callable[[Tensor], None]) -> Tensor:
    """Return the tokens of a state, and record how strong the gradient through them is during backward.

    Args:
        state: (B, S, D) that a block returned, used by the rest of the model too.
        span: Where the tokens stand in it.
        record: Gets ``norm of the gradient through the returned tensor / norm of all other gradient at them``.
    """
    branch = state[:, span]
    ours: list[Tensor] = []

    def on_sum(gradient: Tensor) -> None:
        # The branch's hook has run before: this gradient is the sum of both.
        if ours:
            own = ours.pop()
            record(_norm(own) / _norm(gradient[:, span] - own))

    branch.register_hook(ours.append)
    state.register_hook(on_sum)
    return branch


def _norm(gradient: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.float32)
    return norm
