"""Questions to the autograd graph, asked without running it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction


def reaches_parameter(state: Tensor) -> bool | None:
    """Return whether a gradient into this tensor would arrive at a parameter.

    None where it shows none, but has a node that may hide some (re-entrant checkpointing, other Python functions).
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
    return None if opaque else False


def may_hide_parameter(model: nn.Module, later: Collection[str]) -> bool:
    """Return whether a model may train something outside of some blocks, where the graph cannot be seen.

    Args:
        model: The model, some of whose parts are recomputed in backward.
        later: Module paths of the blocks whose weights do not count.
    """
    for path, module in model.named_modules():
        if any(f"{path}.".startswith(f"{block}.") for block in later):
            continue
        # A forward of the instance's own is how trainers bring in LoRA weights that are no part of the model.
        replaced = path and "forward" in vars(module)
        if replaced or any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            return True
    return False


def tokens_of(state: Tensor, span: slice) -> Tensor:
    """Return (B, S, D): a span of the tokens that a block returned as (B, S', D), or of one sample as (S', D)."""
    tokens = state[..., span, :]
    return tokens if tokens.ndim == 3 else tokens[None]


def measured(state: Tensor, span: slice, record: Callable[[Tensor], None]) -> Tensor:
    """Return the tokens of a state, and record how strong the gradient through them is during backward.

    Args:
        state: (B, S, D) or (S, D) that a block returned, used by the rest of the model too.
        span: Where the tokens stand in it.
        record: Gets ``norm of the gradient through the returned tensor / norm of all other gradient at them``.
    """
    branch = tokens_of(state, span)
    ours: list[Tensor] = []

    def on_sum(gradient: Tensor) -> None:
        # The branch's hook has run before: this gradient is the sum of both.
        if ours:
            own = ours.pop()
            record(_norm(own) / _norm(tokens_of(gradient, span) - own))

    branch.register_hook(ours.append)
    state.register_hook(on_sum)
    return branch


def _norm(gradient: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.float32)
    return norm
