"""Write what was found into docs/effect.md, the start page and the README: `python -m benchmarks.effect.page`.

Everything between ``<!-- effect: NAME -->`` and ``<!-- /effect -->`` on these pages is made here from the results in
docs/effect, so that no figure on them is typed.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.effect import depth_report, settings_report
from benchmarks.effect.arms import CUT_OFF, PAIR, VANILLA
from benchmarks.effect.depth_report import rise_between
from benchmarks.effect.expectations import (
    ABSENT,
    Outcome,
    compared,
    named,
    of_depth,
    of_repetition,
    of_settings,
    repeated,
)
from benchmarks.effect.paired import estimate
from benchmarks.effect.report import text_of
from benchmarks.effect.results import Results
from benchmarks.effect.settings_report import call_of, distance, outcome, ratios, right
from benchmarks.effect.studies import STUDIES
from benchmarks.effect.tasks import DEEP_TASKS, DEPTHS, REPEATED_SETTING, SETTINGS, TASKS
from benchmarks.effect.trained import difference, differences, held_out

ROOT = Path(__file__).parents[2]
PAGES = "README.md", "docs/index.md", "docs/effect.md"
_MARKED = re.compile(r"(<!-- effect: (\w+) -->\n).*?(<!-- /effect -->)", re.DOTALL)


def written(page: str, parts: dict[str, Callable[[], str]]) -> str:
    """Return a page with its marked parts made anew.

    Args:
        page: The page's text.
        parts: What makes each part, by its name.

    Raises:
        KeyError: The page asks for a part that nobody makes.
    """
    return _MARKED.sub(lambda found: found[1] + parts[found[2]]() + found[3], page)


def parts(folder: Path = ROOT / "docs" / "effect") -> dict[str, Callable[[], str]]:
    """Return what makes each part from the results in a folder, by the part's name."""
    main, depth, settings, again = (study.results(folder) for study in STUDIES.values())
    return {
        "answer": lambda: _answer(main, depth, settings, again),
        "short": lambda: _short(depth),
        "depth_table": lambda: depth_report.table(depth),
        "foretold": lambda: _foretold(settings, again),
        "settings": lambda: _settings(settings),
        "settings_table": lambda: settings_report.table(settings),
        "calls": lambda: _calls(settings),
        "repetition": lambda: _lines(_again(settings, again)) + "\n" + settings_report.repetition(again),
        "expected": lambda: _expected(of_depth(depth), of_settings(settings), of_repetition(again)),
        "time": lambda: _time(depth, settings, again),
    }


def _short(depth: Results) -> str:
    rises = {
        blocks: found
        for blocks in sorted(DEPTHS)
        if (found := compared(depth, f"digits-{blocks}", PAIR, VANILLA, rise_between)) is not None
    }
    if not rises:
        return _lines("Nothing is trained yet.")
    costs = {blocks: differences(depth, f"digits-{blocks}", PAIR, VANILLA) for blocks in rises}
    paid = {blocks: estimate([*cost.values()]) for blocks, cost in costs.items()}
    lower = [f"{blocks} blocks" for blocks, cost in paid.items() if cost.high < 0]
    higher = [f"{blocks} blocks" for blocks, cost in paid.items() if cost.low > 0]
    seeds = sorted({len(cost) for cost in costs.values()})
    text = (
        "Without the blocks between student and teacher, the held-out loss of small DiTs on 8x8 digits rises by "
        f"{_and([_share(theirs) for _, theirs in rises.values()])} ({_and([*map(str, rises)])} blocks) if they were "
        f"trained without LayerSync, and by {_and([_share(ours) for ours, _ in rises.values()])} if they were trained "
        "with it. "
    )
    if all(ours < theirs for ours, theirs in rises.values()):
        text += "The term brings these blocks closer to the identity: **LayerSync spends depth.** "
    text += (
        f"The whole model's loss is lower with it, beyond chance, at {_and(lower) or 'none of these depths'}, and "
        f"higher at {_and(higher) or 'none'} ({_span(seeds)} seeds)."
    )
    return _lines(text + _controls(depth) + _so_far(depth))


def _controls(depth: Results) -> str:
    """Return what the other arms add: whether depth comes back, and what the blocks were worth; empty before that."""
    tasks = [f"digits-{blocks}" for blocks in sorted(DEPTHS)]
    early = [compared(depth, task, CUT_OFF, VANILLA, rise_between) for task in tasks]
    never = [compared(depth, task, ABSENT, VANILLA, held_out) for task in tasks]
    text = ""
    if all(early):
        rises = [one for one in early if one is not None]
        back = [f"{blocks}" for blocks, (ours, theirs) in zip(sorted(DEPTHS), rises, strict=True) if ours >= theirs / 2]
        said = (
            f"half of the depth or more comes back at {_and(back)} blocks" if back else "most of the depth stays gone"
        )
        left = _and([_share(ours) for ours, _ in rises])
        text += f" With the term cut off at a third of the training that rise is {left}: {said}."
    if all(never):
        costs = [f"{ours / theirs - 1:+.1%}".replace("-", "−") for ours, theirs in filter(None, never)]
        text += f" The loss of a model that never had these blocks differs by {_and(costs)} from vanilla's."
    return text


def _so_far(study: Results) -> str:
    """Return, for the end of a paragraph, how many trainings are in; empty where all are."""
    count = len(study.missing(study.jobs))
    return f" {len(study.jobs) - count} of {len(study.jobs)} trainings are in so far." if count else ""


def _answer(main: Results, depth: Results, settings: Results, again: Results) -> str:
    """Return where a gain was shown, in the first sentence of the page."""
    gains = [
        f"in the held-out loss of {task.title} ({-cost.mean:.4f} lower)"
        for results, tasks in ((main, TASKS), (depth, DEEP_TASKS), (settings, SETTINGS))
        for name, task in tasks.items()
        if (cost := difference(results, name, PAIR, VANILLA)) and cost.high < 0
    ]
    gains += [
        f"in samples of {task.title}"
        for name, task in TASKS.items()
        if (ratio := distance(main, name, PAIR)) and ratio.high < 1
    ]
    gains += [f"in samples of {title}" for title in _tally(settings).gained]
    if repeated(again):
        gains.append(f"in samples of {SETTINGS[REPEATED_SETTING].title}, trained again with other seeds")
    none = "a gain in loss or samples was not shown anywhere"
    said = f"a gain was shown {_and(gains)}, and nowhere else in loss or samples" if gains else none
    return _lines(
        f"On the small models that were trained here {said}. The paper reports large gains at "
        "hundreds of times their size."
    )


def _and(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _share(rise: float) -> str:
    return f"{rise:.0%}" if rise >= 0.01 else f"{rise:.1%}"


def _span(counts: list[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


@dataclass(frozen=True)
class _Tally:
    """What came out of the settings: how many have an outcome, predictions that were right, and titles."""

    known: int
    correct: int
    yes: list[str]
    gained: list[str]
    further: dict[str, list[str]]
    costly: dict[str, list[str]]


def _tally(settings: Results) -> _Tally:
    correct, known = right(settings)

    def titles(chosen: Callable[[str], bool]) -> list[str]:
        return [described.title for task, described in SETTINGS.items() if chosen(task)]

    def further(task: str, arm: str) -> bool:
        ratio = distance(settings, task, arm)
        return ratio is not None and ratio.low > 1

    def costly(task: str, arm: str) -> bool:
        cost = difference(settings, task, arm, VANILLA)
        return cost is not None and cost.low > 0

    arms = PAIR, CUT_OFF
    return _Tally(
        known,
        correct,
        yes=titles(lambda task: (call := call_of(settings, task)) is not None and call.answer == "yes"),
        gained=titles(lambda task: outcome(settings, task) == "yes"),
        further={arm: titles(partial(further, arm=arm)) for arm in arms},
        costly={arm: titles(partial(costly, arm=arm)) for arm in arms},
    )


def _settings(settings: Results) -> str:
    found = _tally(settings)
    if found.known < len(SETTINGS):
        return _lines(
            f"Not finished: {found.known} of {len(SETTINGS)} settings have an outcome yet, {found.correct} as "
            "predicted."
        )
    return _lines(
        f"**{found.correct} of {found.known} predictions were right.** LayerSync helped in "
        f"{_count(found.gained)}, and yes was said of {_count(found.yes)}. To say no always would have been right in "
        f"{found.known - len(found.gained)}. With the pair to the end, samples are further from the data, beyond "
        f"chance, in {_count(found.further[PAIR])}, and the held-out loss is higher, beyond chance, in "
        f"{_count(found.costly[PAIR])}. With the pair cut off at a third, samples are further from the data in "
        f"{_count(found.further[CUT_OFF])}, and the loss is higher in {_count(found.costly[CUT_OFF])}."
        f"{_so_far(settings)}"
    )


def _foretold(settings: Results, again: Results) -> str:
    found = _tally(settings)
    trivial = found.known - len(found.gained)
    return _lines(
        f"In {found.known} other settings (small DiTs and a small Wan on glyphs and bouncing discs, 6 to 24 blocks) it "
        f"brought samples closer to the data, beyond chance, in {_count(found.gained)}, and further from it in "
        f"{len(found.further[PAIR])} if the term stayed on to the end, in {len(found.further[CUT_OFF])} if it was cut "
        f"off at a third; the held-out loss was higher in {len(found.costly[PAIR])} and {len(found.costly[CUT_OFF])}. "
        f"`layersync suggest`, asked beforehand, said yes to {_count(found.yes)} and was right in {found.correct}; a "
        "rule that always says no would have been right in "
        f"{trivial}. {_again(settings, again)}"
    )


def _again(settings: Results, again: Results) -> str:
    title = SETTINGS[REPEATED_SETTING].title
    ratio, helped = distance(again, REPEATED_SETTING, PAIR), repeated(again)
    if ratio is None or helped is None:
        return f"One of the settings ({title}) is being trained again with other seeds."
    first = [f"{one:.2f}" for one in ratios(settings, REPEATED_SETTING, PAIR)]
    said = "closer to the data, beyond chance" if helped else "not shown to be closer to the data"
    return (
        f"One of the settings ({title}) was trained again with other seeds, since on the first two the distance of its "
        f"samples had been multiplied by {_and(first[:2])} (then by {_and(first[2:])}): on the others it was by "
        f"{text_of(ratio, '.2f', None)}, so {said}."
    )


def _count(titles: list[str]) -> str:
    return f"{len(titles) or 'none'}{named(titles)}"


def _calls(settings: Results) -> str:
    calls = {SETTINGS[task].title: call for task in SETTINGS if (call := call_of(settings, task)) is not None}
    return "".join(f"- {title}: **{call.answer}**, {call.reason}.\n" for title, call in calls.items())


def _expected(*studies: list[Outcome]) -> str:
    said = {True: "kept", False: "**not kept**", None: "unfinished"}
    lines = []
    titles = "the study of depth", "the study of settings", "the repetition"
    for title, outcomes in zip(titles, studies, strict=True):
        lines += [f"| expected of {title} | measured | |", "| --- | --- | --- |"]
        lines += [f"| {one.expected} | {one.measured} | {said[one.kept]} |" for one in outcomes]
        lines.append("")
    return "\n".join(lines)


def _time(*studies: Results) -> str:
    hours = [sum(record.seconds for record in study.records.values()) / 3600 for study in studies]
    trained = [f"{len(study.records)} of {len(study.jobs)} trainings" for study in studies]
    return _lines(
        f"Twelve core-hours were planned. Trained: {trained[0]} of the study of depth in {hours[0]:.1f} "
        f"core-hours, {trained[1]} of the settings in {hours[1]:.1f}, {trained[2]} of the repetition in {hours[2]:.1f}."
    )


def _lines(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def main() -> int:
    """Write the pages, and what they show of the study of depth."""
    folder = ROOT / "docs" / "effect"
    made = parts(folder)
    depth_report.write_page(folder / "depth", STUDIES["depth"].results(folder))
    for name in PAGES:
        page = ROOT / name
        page.write_text(written(page.read_text(encoding="utf-8"), made), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
