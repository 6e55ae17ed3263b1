"""Blocks that return fewer tokens than the model goes on with, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from layersync_core import Attachment, attach
from tests.models import settings

ROUTED = "tokens were dropped, added or merged between blocks .*TREAD.*split over ranks"


@contextmanager
def shortened(
    model: nn.Module,
    pair: tuple[int, int],
    blocks: list[tuple[nn.Module, Any]],
    by: int,
    adapter: Any = None,
    first: bool = False,
) -> Iterator[Attachment]:
    """Attach while some blocks return fewer tokens, which come back before the model goes on.

    Args:
        model: The model.
        pair: Student and teacher, counted from 1.
        blocks: Blocks, and where the tokens stand among what they return.
        by: How many tokens are missing.
        adapter: The adapter, if it is not the family's.
        first: Tokens come before samples.
    """
    saved: dict[nn.Module, Any] = {}

    def drop(element: Any, module: nn.Module, args: Any, output: Any) -> Any:
        saved[module] = output
        if isinstance(output, Tensor):
            return shorter_by(by, output, first)
        position, *name = element if isinstance(element, tuple) else (element,)
        state = output[position]
        shorter = replace(state, x=shorter_by(by, state.x, first)) if name else shorter_by(by, state, first)
        return tuple(shorter if index == position else item for index, item in enumerate(output))

    hooks = [module.register_forward_hook(partial(drop, element)) for module, element in blocks]
    with attach(model, settings(*pair), adapter=adapter) as sync:
        hooks += [module.register_forward_hook(lambda module, *call: saved[module]) for module, _ in blocks]
        yield sync
    for hook in hooks:
        hook.remove()


def shorter_by(count: int, state: Tensor, first: bool) -> Tensor:
    """Return a block's tensor without its last tokens."""
    return state[:-count] if first else state[..., :-count, :]
