"""The table and the figure of the study of depth, even of an unfinished one."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.effect.arms import DEEP_ARMS, PAIR, VANILLA
from benchmarks.effect.depth import RUN, named, runs
from benchmarks.effect.paired import estimate
from benchmarks.effect.report import text_of
from benchmarks.effect.results import Depth, Record, Results
from benchmarks.effect.tasks import DEEP_TASKS
from benchmarks.effect.trained import count_of, header, held_out, trainings
from layersync_plugin_trainer.figures import COLOURS, DPI

TABLE, RUNS, FIGURE = "table.md", "runs.md", "depth.png"
TIMES = "0.2", "0.5", "0.8"
BY_DEPTH = sorted(DEEP_TASKS, key=lambda task: DEEP_TASKS[task].blocks)


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        title: The column's title.
        form: How a value is written.
        of: Returns the value of a training; None where it has none.
        paired: Whether arms show their difference from vanilla.
        ranged: Whether the lowest and the highest seed are shown as well.
    """

    title: str
    form: str
    of: Callable[[Record], float | None]
    paired: bool = False
    ranged: bool = False


def depth_of(record: Record) -> Depth:
    """Return what was measured of a training's depth at its end."""
    found = record.marks[record.steps].depth
    assert found is not None
    return found


def rise(record: Record, run: tuple[int, int]) -> float:
    """Return by which share the loss rises without a run of blocks."""
    depth = depth_of(record)
    return depth.without[named(*run)] / depth.whole - 1


def rise_between(record: Record) -> float | None:
    """Return the share by which the loss rises without all blocks between the pair; None if it never had them."""
    return None if record.span is None else rise(record, record.span)


def _cheapest(record: Record) -> float:
    return min(rise(record, run) for run in runs(len(depth_of(record).change)) if run[1] - run[0] + 1 == RUN)


def change_between(record: Record) -> float | None:
    """Return by how much a block between the pair changes its tokens, on average; None if it never had them."""
    return _change(record, inside=True)


def _change_elsewhere(record: Record) -> float | None:
    return _change(record, inside=False)


def _change(record: Record, inside: bool) -> float | None:
    change = depth_of(record).change
    first, last = record.span or (0, -1)
    # The first and the last block turn pixels into features and back.
    blocks = [block for block in range(2, len(change)) if (first <= block <= last) == inside]
    return float(np.mean([change[block - 1] for block in blocks])) if blocks else None


def _probe(time: str, side: int) -> Callable[[Record], float | None]:
    def of(record: Record) -> float | None:
        return None if record.span is None else record.marks[record.steps].probe[time][record.pair[side] - 1]

    return of


COLUMNS = (
    Column("held-out loss", ".4f", held_out, paired=True),
    Column("rise of it without the blocks between", "+.1%", rise_between, ranged=True),
    Column(f"without the cheapest {RUN} in a row", "+.1%", _cheapest),
    Column("change by a block between", ".3f", change_between),
    Column("change by other blocks", ".3f", _change_elsewhere),
    Column("probe of the student, noise 0.5", ".3f", _probe("0.5", 0)),
    Column("probe of the teacher, noise 0.5", ".3f", _probe("0.5", 1)),
    Column("probe of the student, noise 0.8", ".3f", _probe("0.8", 0)),
    Column("probe of the teacher, noise 0.8", ".3f", _probe("0.8", 1)),
)


def table(results: Results) -> str:
    """Return a Markdown table: means over the seeds, and in the loss paired differences from vanilla."""
    head = ["blocks", "arm", "seeds", *(column.title for column in COLUMNS)]
    lines = header(head)
    for task in BY_DEPTH:
        vanilla = {record.seed: record for record in trainings(results, task, VANILLA)}
        for arm, described in DEEP_ARMS.items():
            if found := trainings(results, task, arm):
                cells = [_cell(column, found, {} if arm == VANILLA else vanilla) for column in COLUMNS]
                row = [str(DEEP_TASKS[task].blocks), described.title, count_of(results, task, arm), *cells]
                lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _cell(column: Column, found: list[Record], vanilla: dict[int, Record]) -> str:
    if column.paired and vanilla:
        pairs = [(column.of(record), column.of(vanilla[record.seed])) for record in found if record.seed in vanilla]
        values = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
        return text_of(estimate(values), f"+{column.form}", 0.0) if values else "–"
    values = [value for record in found if (value := column.of(record)) is not None]
    if not values:
        return "–"
    text = f"{np.mean(values):{column.form}}"
    if column.ranged and len(values) > 1:
        text += f" ({min(values):{column.form}} to {max(values):{column.form}})"
    return text.replace("-", "−")


def page_by_run(results: Results) -> str:
    """Return a page with a row for each block and run of blocks of each arm: means over the seeds."""
    head = [
        "blocks",
        "arm",
        "left out",
        "rise of the held-out loss",
        "change",
        *(f"probe at noise {it}" for it in TIMES),
    ]
    lines = ["# Without each block and run of blocks", "", *header(head)]
    for task, (arm, described) in product(BY_DEPTH, DEEP_ARMS.items()):
        if not (found := trainings(results, task, arm)):
            continue
        for run in runs(len(depth_of(found[0]).change), found[0].span):
            cells = [f"{np.mean([rise(record, run) for record in found]):+.2%}"]
            if run[0] == run[1]:
                marks, place = [record.marks[record.steps] for record in found], run[0] - 1
                cells.append(f"{np.mean([depth_of(record).change[place] for record in found]):.3f}")
                cells += [f"{np.mean([mark.probe[time][place] for mark in marks]):.3f}" for time in TIMES]
            else:
                cells += ["–"] * (1 + len(TIMES))
            lines.append(f"| {' | '.join([str(DEEP_TASKS[task].blocks), described.title, named(*run), *cells])} |")
    return "\n".join(lines) + "\n"


def write_report(folder: Path, results: Results) -> None:
    """Write table.md, runs.md and depth.png."""
    (folder / TABLE).write_text(table(results), encoding="utf-8")
    write_page(folder, results)


def write_page(folder: Path, results: Results) -> None:
    """Write runs.md and depth.png."""
    (folder / RUNS).write_text(page_by_run(results), encoding="utf-8")
    if drawn := lines(results):
        _draw(folder / FIGURE, drawn)


@dataclass(frozen=True)
class Line:
    """What the figure shows of an arm at one depth: for each block, means over the seeds."""

    task: str
    arm: str
    pair: tuple[int, int]
    rises: list[float]
    changes: list[float]


def lines(results: Results) -> list[Line]:
    """Return the lines of the figure."""
    drawn = []
    for task, arm in product(BY_DEPTH, (VANILLA, PAIR)):
        if found := trainings(results, task, arm):
            blocks = range(1, DEEP_TASKS[task].blocks + 1)
            rises = np.mean([[rise(record, (block, block)) for block in blocks] for record in found], axis=0)
            changes = np.mean([depth_of(record).change for record in found], axis=0)
            drawn.append(Line(task, arm, found[0].pair, rises.tolist(), changes.tolist()))
    return drawn


def fingerprint(drawn: list[Line]) -> str:
    """Return what distinguishes one figure from another; it is kept in the picture's file."""
    shown = [(line.task, line.arm, np.round([line.rises, line.changes], 6).tolist()) for line in drawn]
    return f"{zlib.crc32(repr(shown).encode()):08x}"


def _draw(file: Path, drawn: list[Line]) -> None:
    """Draw, for each depth, the rise of the loss without each single block and how much each block changes."""
    depths = list(dict.fromkeys(line.task for line in drawn))
    figure = Figure(figsize=(4.5 * len(depths), 6.5), layout="constrained")
    axes: Any = figure.subplots(2, len(depths), squeeze=False)
    for line in drawn:
        rises, moves = axes[:, depths.index(line.task)]
        colour = COLOURS["vanilla" if line.arm == VANILLA else "layersync"]
        blocks = range(1, len(line.rises) + 1)
        rises.plot(blocks, [100 * share for share in line.rises], "o-", color=colour, label=DEEP_ARMS[line.arm].title)
        moves.plot(blocks, line.changes, "o-", color=colour)
        student, teacher = line.pair
        for axis in (rises, moves):
            axis.axvspan(student + 0.5, teacher + 0.5, color="0.93", zorder=0)
    for (rises, moves), task in zip(axes.T, depths, strict=True):
        rises.set_title(DEEP_TASKS[task].title, fontsize="medium")
        rises.set_yscale("symlog", linthresh=1)
        moves.set_yscale("log")
        moves.set_xlabel("block; grey: after the student, up to the teacher")
    axes[0, 0].set_ylabel("rise of the held-out loss without it, %")
    axes[1, 0].set_ylabel("‖out − in‖ / ‖in‖")
    axes[0, 0].legend(frameon=False, fontsize="small")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=DPI, metadata={"Description": fingerprint(drawn)})
