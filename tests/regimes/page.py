"""The page that lists how every cell ends, ``docs/regimes.md``: written from runs, read by the test."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import torch

from tests.regimes import compiled, distributed, eager, packages
from tests.regimes.cell import FAMILIES, FLOOR, KINDS, ROUNDED, TOLERANCE, Cell, Outcome, Regime, run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "regimes.md"
ALONE: dict[str, tuple[Regime, bool]] = {
    **{name: (regime, False) for name, regime in eager.REGIMES.items()},
    **{name: (regime, False) for name, regime in packages.REGIMES.items()},
    **{name: (regime, True) for name, regime in compiled.REGIMES.items()},
}
"""The regimes of one process, and whether they take the short models."""

Table = Mapping[str, Mapping[str, Outcome]]

_INTRO = """\
# Training regimes

How LayerSync behaves in every way of training that is tested, on tiny random models of five families.

- **right**: the gradients of two steps equal those of a plain run without hooks (a forward written by hand for flux and
  wan, plain hooks on a copy of the model for the others and where values are rounded; the loss written out in plain
  torch). Each parameter's gradient differs by at most {tolerance:g} of its norm, {rounded:g} with bf16 or fp16, 1e-4 if
  it is read from a weight's change (the optimiser that steps inside backward, one step); a norm below {floor:g} of the
  largest counts as {floor:g} of it. A run without the term would differ by more, which every cell checks.
- **refused**: an error before the first optimiser step, which the notes quote.
- **not possible upstream**: the same run fails without LayerSync as well.
- **needs a second device**: not run, because the machine that wrote this page only has a CPU. For the same reason the
  rows that keep or copy tensors elsewhere make their copies on the CPU.

There is no other outcome. Written by `python -m tests.regimes --write` with torch {torch} and diffusers {diffusers};
the tests run every cell and compare it with this page.
"""
_TITLES = {
    "One process": "",
    "Weights of other packages": "One process. LyCORIS trains its own weights outside of a frozen model; torchao and "
    "quanto keep the frozen weights of linear layers as int8, next to which LoRA weights train. If such weights cannot "
    "be copied, the plain run uses the model itself before attaching. torchao is 0.18.0, in separate processes.\n",
    "Compiled": "Models of two blocks. The backend is in brackets: `eager` traces, `aot_eager` makes graphs of forward "
    "and backward as well; the kernels are torch's own in both. Every model has run once before, uncompiled and "
    "without gradients.\n",
    "Two processes": "Models of two blocks, gloo on the CPU. Together the processes have the gradients that one has on "
    "the whole batch.\n",
}


def run_alone(name: str, family: str) -> Outcome:
    """Run a cell of one process."""
    regime, short = ALONE[name]
    return run(lambda sync: Cell(family, sync, short), regime)


def run_all() -> list[Table]:
    """Run every cell, and return the tables in the order of the page."""
    alone: list[Table] = [
        {name: {family: run_alone(name, family) for family in FAMILIES} for name in table}
        for table in (eager.REGIMES, packages.REGIMES, compiled.REGIMES)
    ]
    with TemporaryDirectory() as folder:
        return [*alone, distributed.outcomes(Path(folder))]


def write(tables: list[Table]) -> str:
    """Return the page."""
    notes: list[str] = []
    parts = [
        _INTRO.format(
            tolerance=TOLERANCE,
            rounded=ROUNDED,
            floor=FLOOR,
            torch=torch.__version__.split("+")[0],
            diffusers=diffusers.__version__,
        )
    ]
    for (title, text), table in zip(_TITLES.items(), tables, strict=True):
        head = [f"| {' | '.join(('regime', *FAMILIES))} |", f"|{'---|' * (1 + len(FAMILIES))}"]
        rows = [f"| {name} | {' | '.join(_cell(row[f], notes) for f in FAMILIES)} |" for name, row in table.items()]
        parts.append("\n".join([f"## {title}\n{text}", *head, *rows, ""]))
    listed = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1))
    return "\n".join([*parts, f"## Notes\n\n{listed}\n"])


def _cell(outcome: Outcome, notes: list[str]) -> str:
    if not outcome.reason:
        return outcome.kind
    if outcome.reason not in notes:
        notes.append(outcome.reason)
    return f"{outcome.kind} [{notes.index(outcome.reason) + 1}]"


def read(text: str) -> dict[str, dict[str, Outcome]]:
    """Return what a page says: ``regime -> family -> outcome``."""
    notes = dict(re.findall(r"^(\d+)\. (.+)$", text, re.MULTILINE))
    return {name: dict(zip(FAMILIES, row, strict=True)) for name, row in _rows(text, notes)}


def _rows(text: str, notes: Mapping[str, str]) -> Iterator[tuple[str, list[Outcome]]]:
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| ") or cells[0] == "regime":
            continue
        found = [re.fullmatch(r"(.+?)(?: \[(\d+)\])?", cell) for cell in cells[1:]]
        yield cells[0], [Outcome(one[1], notes[one[2]] if one[2] else "") for one in found if one]


def silent(tables: list[Table]) -> list[str]:
    """Return the cells that ended in none of the ways that the page knows."""
    return [
        f"{name}, {family}: {outcome.kind}, {outcome.reason}"
        for table in tables
        for name, row in table.items()
        for family, outcome in row.items()
        if outcome.kind not in KINDS
    ]
