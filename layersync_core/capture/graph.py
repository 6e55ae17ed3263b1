"""Questions to the autograd graph, asked without running it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import is_dataclass
from itertools import chain
from typing import Any
from weakref import ref

import torch
from torch import Tensor

_KEY = "layersync"


class Mark:
    """Something that lives on nodes of a graph and dies with them. Holding a node itself would keep the graph alive."""


def mark(output: Any, at_end: Callable[[], None]) -> ref[Mark] | None:
    """Mark the graph of every tensor in what a forward returned; None when nothing there has a graph.

    Args:
        output: Tensors, in tuples, lists, mappings or dataclasses.
        at_end: Called when the last of these graphs is gone; it must not hold what holds the reference.
    """
    made, marked = Mark(), False
    for tensor in tensors_in(output):
        node: Any = tensor.grad_fn
        if node is not None:
            node.metadata.setdefault(_KEY, []).append(made)
            marked = True
    return ref(made, lambda _: at_end()) if marked else None


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    items: Iterable[Any] = ()
    if isinstance(value, (tuple, list)):
        items = value
    elif isinstance(value, Mapping):
        items = value.values()
    elif is_dataclass(value) and not isinstance(value, type):
        items = vars(value).values()
    return [*chain.from_iterable(map(tensors_in, items))]


def reached(loss: Tensor, wanted: Set[Any], limit: int) -> set[Any]:
    """Return which of some marks and nodes a loss depends on; the search does not go beyond those it finds.

    Args:
        loss: The root.
        wanted: Marks and nodes to look for.
        limit: Nodes to look at, at most.
    """
    found: set[Any] = set()
    queue = deque([loss.grad_fn] if loss.grad_fn is not None else [])
    seen = {*queue}
    while queue and limit and len(found) < len(wanted):
        limit -= 1
        node: Any = queue.popleft()
        here = wanted & {node, *node.metadata.get(_KEY, ())}
        if here:
            found.update(here)
            continue
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                queue.append(parent)
    return found


def tokens_of(state: Tensor, span: slice) -> Tensor:
    """Return (B, S, D): a span of the tokens that a block returned as (B, S', D), or of one sample as (S', D)."""
    whole = span == slice(0, state.shape[-2])
    tokens = state if whole else state[..., span, :]
    return tokens if tokens.ndim == 3 else tokens[None]


def measured(state: Tensor, span: slice, record: Callable[[Tensor], None]) -> Tensor:
    """Return the tokens of a state, and record how strong the gradient through them is during backward.

    Args:
        state: (B, S, D) or (S, D) that a block returned, used by the rest of the model too.
        span: Where the tokens stand in it.
        record: Gets ``norm of the gradient through the returned tensor / norm of all other gradient at them``.
    """
    branch = tokens_of(state.view_as(state), span)  # a tensor of its own, for a hook of its own
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
