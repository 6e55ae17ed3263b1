"""How much a model's loss rises when a block, or a run of blocks, is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from typing import Any

from torch import nn
from tqdm import tqdm

from layersync_core import Block, ConfigError, Findings, SkippedRun


def leave_out(found: Findings, model: nn.Module, loss: Callable[[], float], cost: int, budget: int) -> None:
    """Record how much the loss rises without each block, then without runs of 2, 4, 8 … blocks, while the budget lasts.

    Args:
        found: Its ``skip``, ``skip_runs`` and ``skip_loss`` are set.
        model: The model.
        loss: Returns the model's loss, always on the same batches.
        cost: Forwards per loss.
        budget: Forwards to spend, enough for at least two losses.

    Raises:
        ConfigError: A loss is not finite.
    """
    left = budget // cost - 1  # one goes to the whole model
    found.skip_loss = whole = _finite(loss(), "")
    blocks = found.described
    found.skip = [None] * len(blocks)
    for first, last in tqdm([*_runs(blocks)][:left], desc="suggest --skip", unit="run"):
        with _without(model, blocks, first, last):
            rise = round(_finite(loss(), f" without blocks {first + 1} to {last + 1}") - whole, 6)
        if first == last:
            found.skip[first] = rise
        else:
            found.skip_runs.append(SkippedRun(first + 1, last + 1, rise))


def leave_out_between(found: Findings, model: nn.Module, loss: Callable[[], float]) -> None:
    """Record how much the loss rises without the blocks between each recommended pair, the teacher among them.

    Between blocks of several stacks, the first block of each further stack stays, since nothing else returns its form.

    Args:
        found: Its ``loss`` and ``between`` are set.
        model: The model.
        loss: Returns the model's loss, always on the same batches.

    Raises:
        ConfigError: A loss is not finite.
    """
    seen: set[tuple[int, int]] = set()
    # Which pairs are recommended depends on what was measured of others.
    while new := [pair for pair in _recommended(found) if pair not in seen]:
        seen.update(new)
        for student, teacher in new:
            runs = _runs_between(found.described, student - 1, teacher - 1)
            if not runs:
                continue
            if found.loss is None:
                found.loss = _finite(loss(), "")
            with ExitStack() as left_out:
                for first, last in runs:
                    left_out.enter_context(_without(model, found.described, first, last))
                rise = round(_finite(loss(), f" without blocks {student + 1} to {teacher}") - found.loss, 6)
            found.between.append(SkippedRun(student + 1, teacher, rise))


def _finite(loss: float, without: str) -> float:
    if not math.isfinite(loss):
        raise ConfigError(f"the model's loss{without} is not finite, so depth to spare cannot be measured")
    return loss


def _recommended(found: Findings) -> list[tuple[int, int]]:
    return [(pair["student"], pair["teacher"]) for pair in found.content()["recommended"]]


def _runs_between(blocks: Sequence[Block], student: int, teacher: int) -> list[tuple[int, int]]:
    """Return the first and last block (0-based) of each run after the student that can be left out."""
    found = []
    for _, run in groupby(blocks[student : teacher + 1], key=_form):
        _, *others = run  # the first of them returns what the others will
        if others:
            found.append((others[0].index, others[-1].index))
    return found


def _runs(blocks: Sequence[Block]) -> Iterator[tuple[int, int]]:
    """Yield the first and last block (0-based) of each run that can be left out, single blocks first."""
    size = 1
    while size < len(blocks):
        for first in range(1, len(blocks) - size + 1, max(size // 2, 1)):
            if len(set(map(_form, blocks[first - 1 : first + size]))) == 1:
                yield first, first + size - 1
        size *= 2


def _form(block: Block) -> tuple[str, int | None, str]:
    # A block's input is the output of the one before it, in the same form only within one stack.
    return block.stack, block.width, block.stage


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
