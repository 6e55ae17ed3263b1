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
from pathlib import Path

from benchmarks.effect import depth_report, settings_report
from benchmarks.effect.arms import PAIR, VANILLA
from benchmarks.effect.depth_report import rise_between
from benchmarks.effect.expectations import Outcome, compared, named, of_depth, of_repetition, of_settings
from benchmarks.effect.results import Results
from benchmarks.effect.settings_report import call_of, distance, outcome, right
from benchmarks.effect.studies import STUDIES
from benchmarks.effect.tasks import DEPTHS, SETTINGS
from benchmarks.effect.trained import difference, trainings

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
    depth, settings, again = (STUDIES[name].results(folder) for name in ("depth", "settings", "repetition"))
    return {
        "short": lambda: _short(depth),
        "depth_table": lambda: depth_report.table(depth),
        "foretold": lambda: _foretold(settings),
        "settings": lambda: _settings(settings),
        "settings_table": lambda: settings_report.table(settings),
        "calls": lambda: _calls(settings),
        "repetition": lambda: settings_report.repetition(again),
        "expected": lambda: _expected(of_depth(depth), of_settings(settings), of_repetition(again)),
        "time": lambda: _time(depth, settings, again),
    }


def _short(depth: Results) -> str:
    found = compared(depth, "digits-12", PAIR, VANILLA, rise_between) or (float("nan"), float("nan"))
    each = [rise_between(record) or 0.0 for record in trainings(depth, "digits-12", VANILLA)]
    costs = {blocks: difference(depth, f"digits-{blocks}", PAIR, VANILLA) for blocks in sorted(DEPTHS)}
    lower = [str(blocks) for blocks, cost in costs.items() if cost is not None and cost.high < 0]
    higher = [str(blocks) for blocks, cost in costs.items() if cost is not None and cost.low > 0]
    return _lines(
        "Without the blocks between student and teacher, the held-out loss of a small DiT of 12 blocks on 8x8 digits "
        f"rises by {found[1]:.0%} if it was trained without LayerSync ({min(each):.0%} to {max(each):.0%} over "
        f"{len(each)} seeds), and by {found[0]:.0%} if it was trained with it. The term brings these blocks closer to "
        "the identity: **LayerSync spends depth.** Of the three depths that were trained (8, 12 and 24 blocks), it "
        f"lowered the loss at {' and '.join(lower) or 'none'} and raised it, beyond chance, at "
        f"{' and '.join(higher) or 'none'}."
    )


@dataclass(frozen=True)
class _Tally:
    """What came out of the settings: how many have an outcome, predictions that were right, and titles."""

    known: int
    correct: int
    yes: list[str]
    gained: list[str]
    further: list[str]
    costly: list[str]


def _tally(settings: Results) -> _Tally:
    correct, known = right(settings)
    ratios = {task: distance(settings, task, PAIR) for task in SETTINGS}
    costs = {task: difference(settings, task, PAIR, VANILLA) for task in SETTINGS}

    def titles(chosen: Callable[[str], bool]) -> list[str]:
        return [described.title for task, described in SETTINGS.items() if chosen(task)]

    return _Tally(
        known,
        correct,
        yes=titles(lambda task: (call := call_of(settings, task)) is not None and call.answer == "yes"),
        gained=titles(lambda task: outcome(settings, task) == "yes"),
        further=titles(lambda task: (ratio := ratios[task]) is not None and ratio.low > 1),
        costly=titles(lambda task: (cost := costs[task]) is not None and cost.low > 0),
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
        f"chance, in {_count(found.further)}, and the held-out loss is higher in {_count(found.costly)}."
    )


def _foretold(settings: Results) -> str:
    found = _tally(settings)
    return _lines(
        f"In {found.known} other settings of that size (glyphs and bouncing discs, 6 to 24 blocks) it brought samples "
        f"closer to the data, beyond chance, in {_count(found.gained)}, and further from it in {len(found.further)}. "
        f"`layersync suggest`, asked beforehand, was right in {found.correct}; it said yes to {_count(found.yes)}."
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
        f"Trained so far: {trained[0]} of the study of depth in {hours[0]:.1f} core-hours, {trained[1]} of the "
        f"settings in {hours[1]:.1f}, {trained[2]} of the repetition in {hours[2]:.1f}."
    )


def _lines(text: str) -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def main() -> int:
    """Write the pages."""
    made = parts()
    for name in PAGES:
        page = ROOT / name
        page.write_text(written(page.read_text(encoding="utf-8"), made), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
