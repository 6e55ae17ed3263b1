"""The table and the figure of a run, even an unfinished one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.effect.arms import ARMS, EMA, PAIR, VANILLA
from benchmarks.effect.paired import Curve, Estimate, estimate, estimate_ratio, speed_up, speed_up_half_way
from benchmarks.effect.results import Mark, Real, Record, Results
from benchmarks.effect.tasks import PROBED_TIMES, TASKS
from benchmarks.effect.trained import header
from layersync_plugin_trainer.figures import COLOURS, DPI

TABLE, FIGURE = "table.md", "effect.png"


@dataclass(frozen=True)
class Measure:
    """One column of the table.

    Attributes:
        title: The column's title.
        digits: Decimal places.
        of: Returns the value of a mark; the pair says which CKA to take.
        pulled: The term itself changes this measure, so a difference is not a finding.
        real: Returns the value of held-out samples.
    """

    title: str
    digits: int
    of: Callable[[Mark, tuple[int, int]], float | None]
    pulled: bool = False
    real: Callable[[Real], float] | None = None


def _probe(time: float, block: int | None = None) -> Measure:
    def of(mark: Mark, pair: tuple[int, int]) -> float:
        accuracies = mark.probe[str(time)]
        return float(np.mean(accuracies) if block is None else accuracies[block - 1])

    return Measure(f"probe at noise {time}, {'all blocks' if block is None else f'block {block}'}", 3, of)


PROBE = _probe(PROBED_TIMES[0])
SECOND_BLOCK = _probe(PROBED_TIMES[0], 2)
HELD_OUT = Measure("held-out loss", 4, lambda mark, _: mark.held_out)
MEASURES = (
    PROBE,
    SECOND_BLOCK,
    _probe(PROBED_TIMES[1]),
    HELD_OUT,
    Measure("Fréchet distance of samples", 2, lambda mark, _: mark.frechet, real=lambda real: real.frechet),
    Measure("samples recognised", 3, lambda mark, _: mark.accuracy, real=lambda real: real.accuracy),
    Measure("CKA of the pair", 3, lambda mark, pair: mark.cka[pair[0] - 1][pair[1] - 1], pulled=True),
)
BESIDE_PAIR = PROBE, SECOND_BLOCK, HELD_OUT


@dataclass(frozen=True)
class Row:
    """An arm of a task at a step, paired seed by seed with the base arm.

    Attributes:
        task: Name of the task.
        arm: Name of the arm.
        step: Optimiser step.
        pairs: The arm's and the base's training for each seed that has both.
        diverged: Number of seeds at which arm or base did not get this far.
    """

    task: str
    arm: str
    step: int
    pairs: list[tuple[Record, Record]]
    diverged: int

    def values(self, measure: Measure) -> list[float]:
        """Return the arm's own values."""
        found = [measure.of(record.marks[self.step], record.pair) for record, _ in self.pairs]
        return [value for value in found if value is not None]

    def differences(self, measure: Measure) -> list[float]:
        """Return the arm's values minus the base's."""
        found = []
        for record, base in self.pairs:
            ours, theirs = (measure.of(side.marks[self.step], record.pair) for side in (record, base))
            if ours is not None and theirs is not None:
                found.append(ours - theirs)
        return found

    def curve(self, record: Record) -> Curve:
        """Return the curve of one of its trainings up to this row's step."""
        return [point for point in record.curve if point[0] <= self.step]

    def ratios(self, of: Callable[[Curve, Curve], float]) -> list[float]:
        """Return a ratio computed from the curves of base and arm."""
        return [of(self.curve(base), self.curve(ours)) for ours, base in self.pairs]


def rows(results: Results, base: str = VANILLA) -> list[Row]:
    """Return a row for every arm and step that was trained at a seed of the base arm: the longest training first."""
    found = []
    for task in TASKS:
        for step in (results.scale.steps, results.scale.short):
            of = [record for record in results.records.values() if record.task == task and record.steps >= step]
            bases = {record.seed: record for record in of if record.arm == base}
            for arm in ARMS:
                both = [(record, bases[record.seed]) for record in of if record.arm == arm and record.seed in bases]
                pairs = [sides for sides in both if all(step in side.marks for side in sides)]
                if both:
                    found.append(Row(task, arm, step, pairs, len(both) - len(pairs)))
    return found


def table(results: Results) -> str:
    """Return two Markdown tables.

    The first has vanilla's values, then every other arm's paired differences to them; the second has the ablations'
    paired differences to the pair.
    """
    lines = _head(
        *(measure.title for measure in MEASURES),
        "vanilla's steps over the arm's, to its loss at half of them",
        "vanilla's steps over the arm's, to the lowest loss of both",
    )
    for row in rows(results):
        if row.arm == VANILLA:
            lines.append(_line(row, [*(_plain(row.values(measure), measure.digits) for measure in MEASURES), "1", "1"]))
            if row.pairs and row.step == max(record.steps for record, _ in row.pairs):
                lines.append(_real(row))
        else:
            # While the average contains more than a hundredth of the initial weights, arms look alike because of it.
            half_way = row.ratios(speed_up_half_way) if EMA ** (row.step / 2) < 0.01 else []
            ratios = _ratio(half_way), _ratio(row.ratios(speed_up))
            lines.append(_line(row, [*(_difference(row, measure) for measure in MEASURES), *ratios]))
    lines += ["", *_head(*(f"{measure.title}, minus the pair's" for measure in BESIDE_PAIR))]
    for row in rows(results, PAIR):
        if row.arm not in (VANILLA, PAIR):
            lines.append(_line(row, [_difference(row, measure) for measure in BESIDE_PAIR]))
    return "\n".join(lines) + "\n"


def _head(*titles: str) -> list[str]:
    return header(["data, steps", "arm", "seeds", *titles])


def _line(row: Row, cells: list[str]) -> str:
    seeds = f"{len(row.pairs)}" + f" ({row.diverged} diverged)" * bool(row.diverged)
    return f"| {' | '.join([f'{TASKS[row.task].title}, {row.step}', ARMS[row.arm].title, seeds, *cells])} |"


def _real(row: Row) -> str:
    """Return a line with the values of held-out samples, which are the same in every training of a task."""
    real = [record.real for record, _ in row.pairs[:1]]
    cells = [_plain([measure.real(value) for value in real if measure.real], measure.digits) for measure in MEASURES]
    return f"| {' | '.join([TASKS[row.task].title, 'held-out samples', '–', *cells, '–', '–'])} |"


def _plain(values: list[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f}" if values else "–"


def _difference(row: Row, measure: Measure) -> str:
    values = row.differences(measure)
    return text_of(estimate(values), f"+.{measure.digits}f", None if measure.pulled else 0.0) if values else "–"


def _ratio(values: list[float]) -> str:
    return text_of(estimate_ratio(values), ".2f", 1.0) if values else "–"


def text_of(found: Estimate, form: str, nothing: float | None) -> str:
    """Return an estimate with its interval, bold where that excludes a value which would mean no effect."""
    spread = "one seed" if math.isinf(found.high) else f"{found.low:{form}} to {found.high:{form}}"
    text = f"{found.mean:{form}} ({spread})".replace("-", "−")
    # An interval without width comes from values that are equal by chance, such as counts, and supports nothing.
    told = nothing is not None and nothing not in found and found.high - found.low > 1e-9
    return f"**{text}**" if told else text


def write_report(folder: Path, results: Results) -> None:
    """Write table.md and effect.png."""
    (folder / TABLE).write_text(table(results), encoding="utf-8")
    _draw(folder / FIGURE, [row for row in rows(results) if row.pairs])


def _draw(file: Path, found: list[Row]) -> None:
    figure = Figure(figsize=(12, 9.5), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1, 1.35])
    curves, probes = parts[0].subplots(1, 2)
    digits = [row for row in found if row.task == "digits"]
    last = max((row.step for row in digits), default=0)
    pair = next((row for row in digits if row.arm == PAIR and row.step == last), None)
    if pair is not None:
        _draw_curves(curves, pair)
        _draw_probes(probes, pair)
        seeds = len(pair.pairs)
        parts[0].suptitle(
            f"Digits, {last} steps, {seeds} seed{'s' * (seeds > 1)}: {ARMS[PAIR].title}, and vanilla", fontsize="medium"
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


SIDES = PAIR, VANILLA


def _draw_curves(axes: Any, row: Row) -> None:
    late = []
    for side, arm in enumerate(SIDES):
        each = np.array([row.curve(pair[side]) for pair in row.pairs])  # seeds, points, (step, loss)
        for curve in each:
            axes.plot(*curve.T, color=_colour(arm), linewidth=0.5, alpha=0.5)
        axes.plot(*each.mean(0).T, color=_colour(arm), linewidth=2, label=ARMS[arm].title)
        late.append(each[:, each.shape[1] // 5 :, 1])
    # The first fifth falls steeply and hides the rest.
    axes.set_ylim(0.995 * np.min(late), np.max(late))
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("held-out loss (velocity MSE)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _draw_probes(axes: Any, row: Row) -> None:
    for side, arm in enumerate(SIDES):
        # seeds, blocks
        each = np.array([pair[side].marks[row.step].probe[str(PROBED_TIMES[0])] for pair in row.pairs])
        blocks = np.arange(1, each.shape[1] + 1)
        for accuracies in each:
            axes.plot(blocks, accuracies, color=_colour(arm), linewidth=0.5, alpha=0.5)
        axes.plot(blocks, each.mean(0), "o-", color=_colour(arm), label=ARMS[arm].title)
    axes.set_xlabel("block")
    axes.set_ylabel(f"accuracy of a linear probe at noise {PROBED_TIMES[0]}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _colour(arm: str) -> str:
    return COLOURS["vanilla" if arm == VANILLA else "layersync"]


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
