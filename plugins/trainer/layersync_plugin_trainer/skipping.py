"""How much a model's loss rises when a block, or a run of blocks, is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from tqdm import tqdm

from layersync_core import Block, Findings, SkippedRun


def leave_out(found: Findings, model: nn.Module, loss: Callable[[], float], cost: int, budget: int) -> None:
    """Record how much the loss rises without each block, then without runs of 2, 4, 8 … blocks, while the budget lasts.

    Args:
        found: Its ``skip`` and ``skip_runs`` are set.
        model: The model.
        loss: Returns the model's loss, always on the same batches.
        cost: Forwards per loss.
        budget: Forwards to spend, enough for at least two losses.
    """
    left = budget // cost - 1  # one goes to the whole model
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


def leave_out_between(found: Findings, model: nn.Module, loss: Callable[[], float]) -> None:
    """Record how much the loss rises without the blocks between each recommended pair, the teacher among them.

    Args:
        found: Its ``loss`` and ``between`` are set.
        model: The model.
        loss: Returns the model's loss, always on the same batches.
    """
    pairs = [(pair["student"], pair["teacher"]) for pair in found.content()["recommended"]]
    runs = [(student, teacher - 1) for student, teacher in pairs if _is_one(found.described[student - 1 : teacher])]
    if not runs:
        return
    found.loss = loss()
    for first, last in runs:
        with _without(model, found.described, first, last):
            found.between.append(SkippedRun(first + 1, last + 1, round(loss() - found.loss, 6)))


def _runs(blocks: Sequence[Block]) -> Iterator[tuple[int, int]]:
    """Yield the first and last block (0-based) of each run that can be left out, single blocks first."""
    size = 1
    while size < len(blocks):
        for first in range(1, len(blocks) - size + 1, max(size // 2, 1)):
            if _is_one(blocks[first - 1 : first + size]):
                yield first, first + size - 1
        size *= 2


def _is_one(run: Sequence[Block]) -> bool:
    # A block's input is the output of the one before it, in the same form only within one stack.
    return len({(block.stack, block.width, block.stage) for block in run}) == 1


@contextmanager
def _without(model: nn.Module, blocks: Sequence[Block], first: int, last: int) -> Iterator[None]:
    """Make a run of blocks return what the block before it returned."""
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
