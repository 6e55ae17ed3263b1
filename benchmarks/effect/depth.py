"""What a model does without some of its blocks, and how much each of them changes."""

# Shapes: N blocks, B samples, S tokens, D channels

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

RUN = 4
"""Longest run of blocks that is left out together."""


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """Return the blocks of a DiT or a Wan of diffusers, in their order."""
    found = getattr(model, "transformer_blocks", None) or model.get_submodule("blocks")
    assert isinstance(found, nn.ModuleList)
    return found


@contextmanager
def left_out(model: nn.Module, blocks: Iterable[int]) -> Iterator[None]:
    """Let blocks, counted from 1, return the tokens that they are given."""
    skipped = [blocks_of(model)[block - 1] for block in blocks]
    for block in skipped:
        block.forward = lambda hidden_states, *others, **named: hidden_states
    try:
        yield
    finally:
        for block in skipped:
            del block.forward  # the class's own again


def runs(count: int, span: tuple[int, int] | None = None) -> list[tuple[int, int]]:
    """Return the first and last block of every run of one to ``RUN`` blocks, the short ones first.

    Args:
        count: Number of blocks.
        span: One that is added if it is longer.
    """
    every = [(first, first + size - 1) for size in range(1, RUN + 1) for first in range(1, count - size + 2)]
    return every if span is None or span in every else [*every, span]


def named(first: int, last: int) -> str:
    """Return a run's name in the results: ``5`` or ``5-8``."""
    return str(first) if first == last else f"{first}-{last}"


def losses_without(
    model: nn.Module, chosen: Iterable[tuple[int, int]], loss: Callable[[nn.Module], float]
) -> dict[str, float]:
    """Return the loss without each run of blocks, by the run's name.

    Args:
        model: The model.
        chosen: First and last block of each run.
        loss: Measures a model.
    """
    found = {}
    for first, last in chosen:
        with left_out(model, range(first, last + 1)):
            found[named(first, last)] = loss(model)
    return found


@torch.no_grad()
def changes(model: nn.Module, forward: Callable[[nn.Module], Any]) -> list[float]:
    """Return how far each block is from the identity: ‖out - in‖ / ‖in‖ of each token, averaged over the tokens.

    Args:
        model: The model.
        forward: Calls it once.
    """
    found: list[float] = []

    def measure(block: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        given: Tensor = arguments[0]  # (B, S, D)
        found.append(float(((output - given).norm(dim=-1) / given.norm(dim=-1)).mean()))

    hooks = [block.register_forward_hook(measure) for block in blocks_of(model)]
    try:
        forward(model)
    finally:
        for hook in hooks:
            hook.remove()
    return found
