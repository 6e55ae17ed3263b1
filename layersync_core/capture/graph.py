"""Inspect the autograd graph without running it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, is_dataclass
from itertools import chain
from typing import Any
from weakref import ref

import torch
from torch import Tensor

_KEY = "layersync"


class Mark:
    """An object kept alive by nodes of a graph, so it dies with them; holding a node would keep the graph alive."""


def mark(output: Any, at_end: Callable[[], None]) -> ref[Mark] | None:
    """Mark the graph of every tensor in what a forward returned; None when nothing there has a graph.

    Args:
        output: Tensors, in tuples, lists, mappings or dataclasses.
        at_end: Called when the last of these graphs is gone; it must not keep the holder of the reference alive.
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
    """Return which of the wanted marks and nodes a loss depends on; the search stops at those it finds.

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


@dataclass(frozen=True)
class SequenceFirst:
    """Where the tokens are in (S', B, D)."""

    span: slice


Span = slice | SequenceFirst
"""Where tokens are in what a block returned: a slice for (B, S', D), (S', D) or (B, T, H, W, D)."""


def sizes_of(state: Tensor, span: Span) -> tuple[int, int]:
    """Return how many samples and how many tokens are in what a block returned."""
    if isinstance(span, SequenceFirst):
        return state.shape[1], state.shape[0]
    return (1, len(state)) if state.ndim == 2 else (len(state), state.shape[1:-1].numel())


def place_of(span: Span) -> slice:
    """Return where the tokens are among those of a sample, whichever axis they are on."""
    return span.span if isinstance(span, SequenceFirst) else span


def tokens_of(state: Tensor, span: Span) -> Tensor:
    """Return (B, S, D): a span of the tokens that a block returned as (B, S', D), or of one sample as (S', D).

    The tokens of (B, T, H, W, D) come in raster order.
    """
    if state.ndim > 3:
        state = state.flatten(1, -2)
    if isinstance(span, SequenceFirst):
        state, span = state.transpose(0, 1), span.span
    whole = span == slice(0, state.shape[-2])
    tokens = state if whole else state[..., span, :]
    return tokens if tokens.ndim == 3 else tokens[None]


def measured(state: Tensor, span: Span, record: Callable[[Tensor], None]) -> Tensor:
    """Return the tokens of a state, and record in backward how strong the gradient through them is.

    Args:
        state: What a block returned, in any of the forms of ``Span``; the rest of the model uses it too.
        span: Where the tokens are in it.
        record: Called with ``norm of the gradient through the returned tensor / norm of all other gradient at them``.
    """
    branch = tokens_of(state.view_as(state), span)  # a separate tensor, so that it can have a separate hook
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
