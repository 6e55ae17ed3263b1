"""The table and the figure of a run, also of one that is not finished."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.effect.arms import ARMS, VANILLA
from benchmarks.effect.measures import PROBED_TIMES
from benchmarks.effect.paired import Estimate, estimate, estimate_ratio, speed_up
from benchmarks.effect.results import Results
from benchmarks.effect.tasks import TASKS
from layersync_plugin_trainer.figures import COLOURS, DPI

TABLE, FIGURE = "table.md", "effect.png"
Record = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """One column of the table.

    Attributes:
        title: Of the column.
        digits: Decimal places.
        of: The value of a record at a step; `pair` says whose CKA is asked for.
    """

    title: str
    digits: int
    of: Callable[[Record, int, Sequence[int]], float | None]


def _mark(name: str) -> Callable[[Record, int, Sequence[int]], float | None]:
    return lambda record, step, pair: record["marks"][str(step)][name]


def _probe(time: float, block: int | None = None) -> Measure:
    def of(record: Record, step: int, pair: Sequence[int]) -> float:
        accuracies = record["marks"][str(step)]["probe"][str(time)]
        return float(np.mean(accuracies) if block is None else accuracies[block - 1])

    return Measure(f"probe at noise {time}, {'all blocks' if block is None else f'block {block}'}", 3, of)


def _cka(record: Record, step: int, pair: Sequence[int]) -> float:
    return float(record["marks"][str(step)]["cka"][pair[0] - 1][pair[1] - 1])


PROBE = _probe(PROBED_TIMES[0])
HELD_OUT = Measure("held-out loss", 4, _mark("held_out"))
MEASURES = (
    PROBE,
    _probe(PROBED_TIMES[0], 2),
    _probe(PROBED_TIMES[1]),
    HELD_OUT,
    Measure("Fréchet distance of samples", 2, _mark("frechet")),
    Measure("samples recognised", 3, _mark("accuracy")),
    Measure("CKA of the pair", 3, _cka),
)


@dataclass(frozen=True)
class Row:
    """An arm of a task at a step, seed by seed beside the vanilla arm of the same seed."""

    task: str
    arm: str
    step: int
    pairs: list[tuple[Record, Record]]

    def values(self, measure: Measure) -> list[float]:
        """Return the arm's own values."""
        found = [measure.of(record, self.step, record["pair"]) for record, _ in self.pairs]
        return [value for value in found if value is not None]

    def differences(self, measure: Measure) -> list[float]:
        """Return the arm's values minus vanilla's."""
        found = []
        for record, vanilla in self.pairs:
            ours, theirs = (measure.of(side, self.step, record["pair"]) for side in (record, vanilla))
            if ours is not None and theirs is not None:
                found.append(ours - theirs)
        return found

    def speed_ups(self) -> list[float]:
        """Return vanilla's steps over the arm's to the same held-out loss, within this row's steps."""
        cut = [[[point for point in side["curve"] if point[0] <= self.step] for side in pair] for pair in self.pairs]
        return [speed_up(vanilla, ours) for ours, vanilla in cut]


def rows(results: Results) -> list[Row]:
    """Return a row for every arm and step that has both sides at one seed or more: the longest training first."""
    found = []
    for task in TASKS:
        for step in (results.scale.steps, results.scale.short):
            of = [
                record for record in results.records.values() if record["task"] == task and str(step) in record["marks"]
            ]
            vanilla = {record["seed"]: record for record in of if record["arm"] == VANILLA}
            for arm in ARMS:
                ours = [record for record in of if record["arm"] == arm and record["seed"] in vanilla]
                if ours:
                    found.append(Row(task, arm, step, [(record, vanilla[record["seed"]]) for record in ours]))
    return found


def table(found: list[Row]) -> str:
    """Return the rows as a Markdown table: vanilla's values, and every other arm's paired differences to them."""
    titles = ["data, steps", "arm", "seeds", *(m.title for m in MEASURES), "vanilla's steps over the arm's"]
    lines = [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]
    for row in found:
        cells = [f"{TASKS[row.task].title}, {row.step}", ARMS[row.arm].title, str(len(row.pairs))]
        if row.arm == VANILLA:
            cells += [_plain(row.values(measure), measure.digits) for measure in MEASURES] + ["1"]
        else:
            cells += [_difference(row.differences(measure), measure.digits) for measure in MEASURES]
            cells.append(_ratio(row.speed_ups()))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _plain(values: list[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f}" if values else "–"


def _difference(values: list[float], digits: int) -> str:
    return _text(estimate(values), f"+.{digits}f", 0.0) if values else "–"


def _ratio(values: list[float]) -> str:
    return _text(estimate_ratio(values), ".2f", 1.0)


def _text(found: Estimate, form: str, nothing: float) -> str:
    spread = "one seed" if math.isinf(found.high) else f"{found.low:{form}} to {found.high:{form}}"
    text = f"{found.mean:{form}} ({spread})".replace("-", "−")
    return text if nothing in found else f"**{text}**"


def write_report(folder: Path, results: Results) -> None:
    """Write table.md and effect.png."""
    found = rows(results)
    (folder / TABLE).write_text(table(found))
    _draw(folder / FIGURE, found)


def _draw(file: Path, found: list[Row]) -> None:
    figure = Figure(figsize=(12, 9.5), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1, 1.35])
    curves, probes = parts[0].subplots(1, 2)
    digits = [row for row in found if row.task == "digits"]
    last = max((row.step for row in digits), default=0)
    pair = next((row for row in digits if row.arm == "pair" and row.step == last), None)
    if pair is not None:
        _draw_curves(curves, pair)
        _draw_probes(probes, pair)
        seeds = len(pair.pairs)
        parts[0].suptitle(
            f"Digits, {last} steps, {seeds} seed{'s' * (seeds > 1)}: pair 4 → 8 and vanilla", fontsize="medium"
        )
    others = [row for row in found if row.arm != VANILLA]
    axes = parts[1].subplots(1, 2, sharey=True)
    _draw_differences(axes[0], others, PROBE)
    _draw_differences(axes[1], others, HELD_OUT)
    axes[0].set_yticks(range(len(others)), [_short(row) for row in others], fontsize="small")
    axes[0].invert_yaxis()
    parts[1].suptitle("Paired differences to vanilla at the same seed and step, 95 % intervals", fontsize="medium")
    figure.savefig(file, dpi=DPI)


def _short(row: Row) -> str:
    return f"{TASKS[row.task].title}, {row.step}: {ARMS[row.arm].title}"


def _draw_curves(axes: Any, row: Row) -> None:
    for side, name in enumerate(("layersync", "vanilla")):
        each = np.array([pair[side]["curve"] for pair in row.pairs])  # seeds, points, (step, loss)
        for curve in each:
            axes.plot(*curve.T, color=COLOURS[name], linewidth=0.5, alpha=0.5)
        axes.plot(
            *each.mean(0).T, color=COLOURS[name], linewidth=2, label="pair 4 → 8" if name == "layersync" else name
        )
    # The first fifth falls steeply and hides the rest.
    late = each[:, each.shape[1] // 5 :, 1]
    axes.set_ylim(0.995 * late.min(), late.max())
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("held-out loss (velocity MSE)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _draw_probes(axes: Any, row: Row) -> None:
    for side, name in enumerate(("layersync", "vanilla")):
        each = np.array(
            [pair[side]["marks"][str(row.step)]["probe"][str(PROBED_TIMES[0])] for pair in row.pairs]
        )  # seeds, blocks
        blocks = np.arange(1, each.shape[1] + 1)
        for accuracies in each:
            axes.plot(blocks, accuracies, color=COLOURS[name], linewidth=0.5, alpha=0.5)
        axes.plot(blocks, each.mean(0), "o-", color=COLOURS[name], label="pair 4 → 8" if side == 0 else name)
    axes.set_xlabel("block")
    axes.set_ylabel(f"accuracy of a linear probe at noise {PROBED_TIMES[0]}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _draw_differences(axes: Any, found: list[Row], measure: Measure) -> None:
    for place, row in enumerate(found):
        values = row.differences(measure)
        spread = estimate(values)
        if math.isfinite(spread.high):
            axes.plot([spread.low, spread.high], [place, place], color=COLOURS["layersync"], linewidth=2)
        axes.plot(values, [place] * len(values), "|", color="0.4")
        axes.plot(spread.mean, place, "o", color=COLOURS["layersync"], markersize=5)
    axes.axvline(0, color=COLOURS["vanilla"], linewidth=1)
    axes.set_xlabel(f"{measure.title}, difference")
    axes.locator_params(axis="x", nbins=6)
    axes.grid(alpha=0.3, axis="x")
