"""The page on the effect: its figures are those of the results, and expectations stand beside what came out."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.effect import expectations, page
from benchmarks.effect.arms import DEEP_ARMS, PAIR, VANILLA
from benchmarks.effect.studies import STUDIES
from benchmarks.effect.tasks import DEEP_TASKS, SETTINGS
from tests.effect_made import of_depth, settings
from tests.effect_records import ROOT


@pytest.mark.parametrize("name", page.PAGES)
def test_every_figure_is_that_of_the_results(name: str) -> None:
    text = (ROOT / name).read_text()
    assert "<!-- effect: " in text
    assert text == page.written(text, page.parts()), "python -m benchmarks.effect.page writes them"


def test_the_table_of_every_run_of_blocks_is_that_of_the_results() -> None:
    folder = ROOT / "docs" / "effect"
    shown = (folder / "depth" / "runs.md").read_text()
    assert shown == page.depth_report.page_by_run(STUDIES["depth"].results(folder))
    assert (folder / "depth" / "depth.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_is_made_anew_and_the_rest_of_a_page_stays() -> None:
    text = "before\n<!-- effect: one -->\nold\n<!-- /effect -->\nafter\n"
    assert page.written(text, {"one": lambda: "new\n"}) == text.replace("old", "new")
    with pytest.raises(KeyError):
        page.written(text, {})


def depth(
    folder: Path, arms: dict[str, tuple[float, float]], change: float = 0.01, gap: float = 0.0
) -> list[bool | None]:
    """Return which expectations are kept if each arm has this loss, and this one without the blocks between."""
    (folder / "depth").mkdir()
    results = STUDIES["depth"].results(folder)
    for place, task in enumerate(sorted(DEEP_TASKS, key=lambda name: DEEP_TASKS[name].blocks)):
        for arm, (loss, without) in arms.items():
            for seed in range(3):
                # What an arm costs falls with depth.
                more = loss + (loss - 0.4) * (2 - place) + 1e-6 * seed
                changed = 0.1 if arm == VANILLA else change
                results.add(of_depth(arm, seed, more, without / loss * more, task, changed, gap))
    return [one.kept for one in expectations.of_depth(results)]


AS_EXPECTED = {
    VANILLA: (0.4, 0.6),
    PAIR: (0.41, 0.42),
    "cut-off": (0.4, 0.58),
    "cut-off-late": (0.4, 0.48),
    "stochastic-depth": (0.405, 0.41),
    "never-there": (0.404, 0.0),
}


def test_expectations_of_the_depth_that_are_kept(tmp_path: Path) -> None:
    assert set(AS_EXPECTED) == set(DEEP_ARMS)
    kept = depth(tmp_path, AS_EXPECTED)
    assert kept == [True] * 7


@pytest.mark.parametrize(
    ("arm", "values", "broken"),
    [
        (PAIR, (0.41, 0.5), [1]),
        (PAIR, (0.39, 0.4), [3, 5, 7]),
        ("cut-off", (0.4, 0.45), [4]),
        ("cut-off-late", (0.4, 0.59), [4]),
        ("stochastic-depth", (0.43, 0.431), [5]),
        ("never-there", (0.45, 0.0), [6]),
        ("never-there", (0.35, 0.0), [6]),
    ],
)
def test_expectations_of_the_depth_that_are_not(
    tmp_path: Path, arm: str, values: tuple[float, float], broken: list[int]
) -> None:
    kept = depth(tmp_path, {**AS_EXPECTED, arm: values})
    assert [place for place, one in enumerate(kept, 1) if not one] == broken


def test_what_is_not_trained_yet_is_neither(tmp_path: Path) -> None:
    assert depth(tmp_path, {VANILLA: (0.4, 0.6)}) == [None] * 7


def test_blocks_that_change_as_much_as_before_and_a_gap_are_not_as_expected(tmp_path: Path) -> None:
    kept = depth(tmp_path, AS_EXPECTED, change=0.08, gap=0.1)
    assert [place for place, one in enumerate(kept, 1) if not one] == [2, 7]


def test_expectations_of_the_settings(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(SETTINGS, (1.2, 1.1))
    results = settings(tmp_path, nowhere, dict.fromkeys(SETTINGS, "no"))
    first, second, third, *_, last = expectations.of_settings(results)
    assert (first.measured, first.kept) == ("no in 7 of 7", True)
    assert (second.measured, second.kept) == ("in 0 of 7", True)
    assert (third.measured, third.kept) == ("7 of 7; to say no always would be right in 7", True)
    assert (last.measured, last.kept) == ("in 7 of 7", True)


def test_expectations_of_the_settings_that_are_not_kept(tmp_path: Path) -> None:
    helped = {task: (0.8, 1.1) if place < 3 else (1.2, 1.1) for place, task in enumerate(SETTINGS)}
    answers = {task: "yes" if place < 2 else "no" for place, task in enumerate(SETTINGS)}
    first, second, third, *_ = expectations.of_settings(settings(tmp_path, helped, answers))
    assert not first.kept
    assert not second.kept
    assert (third.measured, third.kept) == ("6 of 7; to say no always would be right in 4", True)
    assert SETTINGS["glyphs-24"].title in second.measured
