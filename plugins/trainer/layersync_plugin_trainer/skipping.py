"""How much a model's loss rises when a block, or a run of blocks, is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from tqdm import tqdm

from layersync_core import Block, Findings, SkippedRun


def leave_out(found: Findings, model: nn.Module, loss: Callable[[], float], cost: int, budget: int) -> None:
    """Note the rise of the loss without each block, and then without runs of 2, 4, 8 …, while the budget lasts.

    Args:
        found: Gets ``skip`` and ``skip_runs``.
        model: The model.
        loss: Returns its loss on batches that are always the same.
        cost: Forwards that one loss takes.
        budget: Forwards to spend, enough for two losses.
    """
    left = budget // cost - 1  # whole is one of them
    whole = loss()
    blocks = found.described
    found.skip = [None] * len(blocks)
    for first, last in tqdm([*_runs(blocks)][:left], desc="suggest --skip", unit="run"):
        with _without(model, blocks, first, last):
            rise = round(loss() - whole, 6)
        if first == last:
            found.skip[first] = rise
        else:
            found.skip_runs.append(SkippedRun(first + 1, last + 1, rise))


def _runs(blocks: Sequence[Block]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last block of each run that can be left out, single blocks first, from 0."""
    size = 1
    while size < len(blocks):
        for first in range(1, len(blocks) - size + 1, max(size // 2, 1)):
            run = blocks[first - 1 : first + size]
            # What went into a block is what the one before it returned, and only within a list is it of the same form.
            if len({(block.stack, block.width, block.stage) for block in run}) == 1:
                yield first, first + size - 1
        size *= 2


@contextmanager
def _without(model: nn.Module, blocks: Sequence[Block], first: int, last: int) -> Iterator[None]:
    """Let a run of blocks return what the block before it returned."""
    before: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        before[:] = [output]

    def give(module: nn.Module, args: Any, output: Any) -> Any:
        return before[0]

    modules = [model.get_submodule(blocks[index].path) for index in range(first - 1, last + 1)]
    handles = [modules[0].register_forward_hook(keep)]
    handles += [module.register_forward_hook(give) for module in modules[1:]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
