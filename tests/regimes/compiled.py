"""The regimes that compile: the whole model or its blocks, alone and with checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.regimes.cell import Cell, Regime
from tests.regimes.eager import Setup, checkpointed, reentrant

# The first only traces, the second makes graphs of forward and backward too, which takes three times as long; both run
# torch's own kernels.
TRACED, GRAPHS = "eager", "aot_eager"

Compile = Callable[[Any, str], Any]


def whole(model: Any, backend: str) -> Any:
    return torch.compile(model, backend=backend, fullgraph=True)


def in_place(model: Any, backend: str) -> Any:
    model.compile(backend=backend)
    return model


def repeated(model: Any, backend: str) -> Any:
    model.compile_repeated_blocks(backend=backend, fullgraph=True)
    return model


def before(compiled: Compile, backend: str, cell: Cell, setup: Setup | None = None) -> None:
    """Attach, then compile."""
    _prepare(cell, setup)
    cell.attach()
    cell.train(compiled(cell.model, backend))


def after(compiled: Compile, cell: Cell) -> None:
    """Compile, then attach."""
    _prepare(cell)
    run = compiled(cell.model, TRACED)
    cell.attach(run)
    cell.train(run)


def after_a_step(compiled: Compile, cell: Cell) -> None:
    """Compile, run, then attach."""
    _prepare(cell)
    run = compiled(cell.model, TRACED)
    cell.total(run).backward()
    cell.model.zero_grad(set_to_none=True)
    cell.attach(run)
    cell.train(run)


def _prepare(cell: Cell, setup: Setup | None = None) -> None:
    torch._dynamo.reset()
    # Z-Image keeps what it computes at its first forward, in a way that does not compile.
    with torch.no_grad():
        cell.model(**cell.inputs)
    if setup:
        setup(cell)


_WAYS: dict[str, tuple[Compile, str]] = {
    "torch.compile(fullgraph=True)": (whole, GRAPHS),
    "model.compile()": (in_place, TRACED),
    "compile_repeated_blocks(fullgraph=True)": (repeated, TRACED),
}

REGIMES: dict[str, Regime] = {
    f"{name} ({backend})": regime
    for way, (compiled, best) in _WAYS.items()
    for name, backend, regime in (
        (f"attach, then {way}", best, partial(before, compiled, best)),
        (f"{way}, then attach", TRACED, partial(after, compiled)),
        (f"{way}, a step, then attach", TRACED, partial(after_a_step, compiled)),
        (
            f"attach, then {way}, non-re-entrant checkpointing",
            best,
            partial(before, compiled, best, setup=checkpointed),
        ),
        (
            f"attach, then {way}, re-entrant checkpointing",
            TRACED,
            partial(before, compiled, TRACED, setup=partial(checkpointed, how=reentrant)),
        ),
    )
}
