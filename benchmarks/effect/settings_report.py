"""The prediction and the outcome, setting by setting, even of an unfinished run."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean

from benchmarks.effect.arms import CUT_OFF, PAIR, VANILLA
from benchmarks.effect.paired import Estimate, estimate_ratio
from benchmarks.effect.report import text_of
from benchmarks.effect.results import Call, Record, Results
from benchmarks.effect.tasks import REPEATED_SETTING, SETTINGS
from benchmarks.effect.trained import count_of, difference, diverged, header, held_out, is_whole, trainings

TABLE = "table.md"


def call_of(results: Results, task: str) -> Call | None:
    """Return the prediction for a setting: from the vanilla model of the first seed; None if it isn't there yet."""
    first = next(iter(trainings(results, task, VANILLA)), None)
    return first.call if first is not None and first.seed == 0 else None


def gap(record: Record) -> float:
    """Return what LayerSync could close: the teacher's probe minus the student's, at noise 0.5."""
    probe, (student, teacher) = record.marks[record.steps].probe["0.5"], record.pair
    return probe[teacher - 1] - probe[student - 1]


def paired(results: Results, task: str, arm: str) -> list[tuple[Record, Record]]:
    """Return the arm's and vanilla's training for each seed that has both."""
    vanilla = {record.seed: record for record in trainings(results, task, VANILLA)}
    return [(record, vanilla[record.seed]) for record in trainings(results, task, arm) if record.seed in vanilla]


def distance(results: Results, task: str, arm: str) -> Estimate | None:
    """Return by what the arm multiplies the Fréchet distance of samples; None if nothing is trained yet."""
    found = ratios(results, task, arm)
    return estimate_ratio(found) if found else None


def ratios(results: Results, task: str, arm: str) -> list[float]:
    """Return by what the arm multiplies the Fréchet distance of samples, seed by seed."""
    marks = [[side.marks[side.steps].frechet for side in sides] for sides in paired(results, task, arm)]
    return [ours / theirs for ours, theirs in marks]


def outcome(results: Results, task: str) -> str | None:
    """Return yes if samples are closer to the data with either arm, beyond chance, and no otherwise.

    An arm of which a training diverged does not count as one that helped.

    Returns:
        None while trainings of the setting are missing and an arm has fewer than two seeds, where nothing can be beyond
        chance.
    """
    found = {arm: distance(results, task, arm) for arm in (PAIR, CUT_OFF)}
    if any(one is None or math.isinf(one.high) for one in found.values()) and not is_whole(results, task):
        return None
    stable = [one for arm, one in found.items() if not diverged(results, task, arm)]
    return "yes" if any(one is not None and one.high < 1 for one in stable) else "no"


def right(results: Results) -> tuple[int, int]:
    """Return how many of the predictions were right, and how many settings have an outcome."""
    both = [(call, outcome(results, task)) for task in SETTINGS if (call := call_of(results, task)) is not None]
    known = [call.answer == found for call, found in both if found is not None]
    return sum(known), len(known)


def predictions(results: Results) -> list[str]:
    """Return, for each setting, the gap that LayerSync could close and the prediction, as lines for a terminal."""
    lines = []
    for task, described in SETTINGS.items():
        if call := call_of(results, task):
            gaps = ", ".join(f"{gap(record):+.3f}" for record in trainings(results, task, VANILLA))
            lines.append(f"{described.title}: gap at noise 0.5 {gaps}; likely to help? {call.answer}: {call.reason}")
    return lines


def table(results: Results) -> str:
    """Return a Markdown table with a row for each setting."""
    head = [
        *("setting", "seeds", "gap at noise 0.5", "centred cosine of the pair", "likely to help?"),
        *("Fréchet distance, held-out samples", "Fréchet distance, vanilla"),
        *(f"its ratio to vanilla's, {arm}" for arm in ("pair", "cut off")),
        *(f"held-out loss minus vanilla's, {arm}" for arm in ("pair", "cut off")),
        *("it helped", "right"),
    ]
    lines = header(head)
    for task, described in SETTINGS.items():
        vanilla, call, found = trainings(results, task, VANILLA), call_of(results, task), outcome(results, task)
        if call is None:
            continue
        cells = [
            described.title,
            count_of(results, task, PAIR),
            f"{fmean(map(gap, vanilla)):+.3f}".replace("-", "−"),
            _centred(call, vanilla[0].pair),
            call.answer,
            f"{vanilla[0].real.frechet:.2f}",
            f"{fmean(record.marks[record.steps].frechet for record in vanilla):.2f}",
            *(_text(distance(results, task, arm), ".3f", 1.0) for arm in (PAIR, CUT_OFF)),
            *(_text(difference(results, task, arm, VANILLA), "+.4f", 0.0) for arm in (PAIR, CUT_OFF)),
            found or "–",
            "–" if found is None else "right" if found == call.answer else "wrong",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def repetition(results: Results) -> str:
    """Return a Markdown table of the setting that was trained again, with a row for each seed."""
    measures = "Fréchet distance", "held-out loss"
    lines = header(["seed", *(f"{what}, {arm}" for what in measures for arm in ("vanilla", "pair"))])
    for pair, vanilla in paired(results, REPEATED_SETTING, PAIR):
        distances = [f"{side.marks[side.steps].frechet:.2f}" for side in (vanilla, pair)]
        losses = [f"{held_out(side):.4f}" for side in (vanilla, pair)]
        lines.append(f"| {' | '.join([str(pair.seed), *distances, *losses])} |")
    return "\n".join(lines) + "\n"


def _centred(call: Call, pair: tuple[int, int]) -> str:
    """Return the centred cosine of the pair that the arms train, in the model that the prediction was made from."""
    found = [it.centred for it in call.compared if (it.student, it.teacher) == pair]
    return "–" if not found or found[0] is None else f"{found[0]:.3f}".replace("-", "−")


def _text(found: Estimate | None, form: str, nothing: float) -> str:
    return "–" if found is None else text_of(found, form, nothing)


def write_report(folder: Path, results: Results) -> None:
    """Write table.md."""
    (folder / TABLE).write_text(table(results), encoding="utf-8")


def write_repetition(folder: Path, results: Results) -> None:
    """Write table.md of the setting that was trained again."""
    (folder / TABLE).write_text(repetition(results), encoding="utf-8")
