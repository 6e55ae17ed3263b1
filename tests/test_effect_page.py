"""The page on the effect: its figures are those of the results, and expectations stand beside what came out."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.effect import expectations, page
from benchmarks.effect.arms import CUT_OFF, DEEP_ARMS, PAIR, VANILLA
from benchmarks.effect.studies import STUDIES
from benchmarks.effect.tasks import DEEP_TASKS, SETTINGS
from tests.effect_made import of_depth, of_setting, settings
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
    folder: Path,
    arms: dict[str, tuple[float, float]],
    change: float = 0.01,
    gap: float = 0.0,
    fewer: int = 0,
) -> list[bool | None]:
    """Return which expectations are kept if each arm has this loss, and this one without the blocks between.

    Args:
        folder: An empty folder.
        arms: Loss, and loss without the blocks between.
        change: By how much a block changes its tokens with any arm but vanilla, which has 0.1.
        gap: The teacher's probe minus the student's.
        fewer: How many of the planned trainings at the end are missing.
    """
    (folder / "depth").mkdir()
    results = STUDIES["depth"].results(folder)
    depths = sorted(DEEP_TASKS, key=lambda name: DEEP_TASKS[name].blocks)
    for job in results.jobs[: len(results.jobs) - fewer]:
        if job.arm in arms:
            loss, without = arms[job.arm]
            # What an arm costs falls with depth.
            more = loss + (loss - 0.4) * (2 - depths.index(job.task)) + 1e-6 * job.seed
            changed = 0.1 if job.arm == VANILLA else change
            results.add(of_depth(job.arm, job.seed, more, without / loss * more, job.task, changed, gap))
    return [one.kept for one in expectations.of_depth(results)]


AS_EXPECTED = {
    VANILLA: (0.4, 0.6),
    PAIR: (0.41, 0.42),
    "cut-off": (0.4, 0.58),
    "cut-off-late": (0.4, 0.48),
    "stochastic-depth": (0.405, 0.41),
    "never-there": (0.4035, 0.0),
}


def broken(kept: list[bool | None]) -> list[int]:
    """Return the numbers of those that are not kept; the last is a second half of the seventh."""
    assert None not in kept
    return [place for place, one in enumerate(kept, 1) if not one]


def test_expectations_of_the_depth_that_are_kept(tmp_path: Path) -> None:
    assert set(AS_EXPECTED) == set(DEEP_ARMS)
    assert depth(tmp_path, AS_EXPECTED) == [True] * 8


@pytest.mark.parametrize(
    ("arm", "values", "expected"),
    [
        (PAIR, (0.41, 0.47), [1]),  # a third of vanilla's rise
        (PAIR, (0.39, 0.4), [3, 5, 7]),
        ("cut-off", (0.4, 0.45), [4]),
        ("cut-off-late", (0.4, 0.59), [4]),
        ("stochastic-depth", (0.43, 0.431), [5]),
        ("stochastic-depth", (0.405, 0.43), [5]),
        ("never-there", (0.45, 0.0), [6]),
        ("never-there", (0.385, 0.0), [6]),  # better by more than 2 % at 12 blocks
    ],
)
def test_expectations_of_the_depth_that_are_not(
    tmp_path: Path, arm: str, values: tuple[float, float], expected: list[int]
) -> None:
    assert broken(depth(tmp_path, {**AS_EXPECTED, arm: values})) == expected


@pytest.mark.parametrize(("change", "gap", "expected"), [(0.051, 0.0, [2]), (0.01, 0.06, [8]), (0.049, 0.04, [])])
def test_how_much_blocks_change_and_the_gap(tmp_path: Path, change: float, gap: float, expected: list[int]) -> None:
    assert broken(depth(tmp_path, AS_EXPECTED, change, gap)) == expected


def test_nothing_is_judged_before_its_last_training(tmp_path: Path) -> None:
    # The last of the plan is a seed of the pair, on which the fourth, the sixth and the gap do not depend.
    assert depth(tmp_path, AS_EXPECTED, fewer=1) == [None, None, None, True, None, True, None, True]


def test_what_is_not_trained_yet_is_neither(tmp_path: Path) -> None:
    assert depth(tmp_path, {PAIR: (0.4, 0.6)}) == [None] * 8


def test_arms_of_unlike_seeds_are_compared_at_those_that_both_have(tmp_path: Path) -> None:
    """Vanilla has five seeds and other arms three, so two seeds of vanilla that went wrong must not count."""
    (tmp_path / "depth").mkdir()
    results = STUDIES["depth"].results(tmp_path)
    for job in results.jobs:
        if job.arm == VANILLA:
            results.add(of_depth(VANILLA, job.seed, 0.4 if job.seed < 3 else 0.8, 0.6, job.task))
        elif job.arm == "never-there":
            results.add(of_depth(job.arm, job.seed, 0.402, 0.0, job.task))
    sixth = expectations.of_depth(results)[5]
    assert sixth.measured == "8 blocks: +0.5%; 12 blocks: +0.5%; 24 blocks: +0.5%"
    assert sixth.kept is False


def test_expectations_of_the_settings(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(SETTINGS, (1.2, 1.1))
    found = expectations.of_settings(settings(tmp_path, nowhere, dict.fromkeys(SETTINGS, "no")))
    assert [(one.measured, one.kept) for one in found[:1] + found[2:4] + found[5:]] == [
        ("no in 7 of 7", True),
        ("in 0 of 7", True),
        ("7 of 7; to say no always would be right in 7", True),
        ("in 7 of 7", True),
    ]
    # Every setting costs the same here, so not the one of 6 blocks most.
    assert (found[4].measured, found[4].kept) == (f"shown in 7 of 7, most in {SETTINGS['glyphs-24'].title}", False)
    assert found[1].kept is False, "the reasons are not those that were expected"


def test_expectations_of_the_settings_that_are_not_kept(tmp_path: Path) -> None:
    helped = {task: (0.8, 1.1) if place < 3 else (1.2, 1.1) for place, task in enumerate(SETTINGS)}
    answers = {task: "yes" if place < 2 else "no" for place, task in enumerate(SETTINGS)}
    first, _, second, third, *_ = expectations.of_settings(settings(tmp_path, helped, answers))
    assert (first.measured[:12], first.kept) == ("no in 5 of 7", False)
    assert second.kept is False
    assert (third.measured, third.kept) == ("6 of 7; to say no always would be right in 4", True)
    assert SETTINGS["glyphs-24"].title in second.measured


def test_five_right_predictions_and_two_gains_are_too_few_and_too_many(tmp_path: Path) -> None:
    helped = {task: (0.8, 1.1) if place < 2 else (1.2, 1.1) for place, task in enumerate(SETTINGS)}
    found = expectations.of_settings(settings(tmp_path, helped, dict.fromkeys(SETTINGS, "no")))
    assert (found[2].kept, found[3].kept) == (False, False)
    assert found[3].measured.startswith("5 of 7")


def test_reasons_and_costs_as_expected(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(SETTINGS, (1.2, 1.1))
    results = settings(tmp_path, nowhere, dict.fromkeys(SETTINGS, "no"))
    for task, described in SETTINGS.items():
        first = results.records[f"{task}/{VANILLA}/0"]
        assert first.call is not None
        why = "no teacher separates" if described.blocks > 6 else "there is no depth to spare"
        results.add(first.model_copy(update={"call": first.call.model_copy(update={"reason": why})}))
    for seed in range(3):
        results.add(of_setting("glyphs-6", PAIR, seed, 20.0, held_out=0.6 + 0.001 * seed))
        results.add(of_setting("glyphs-12", CUT_OFF, seed, 20.0, held_out=0.6 + 0.001 * seed))
    found = expectations.of_settings(results)
    assert (found[1].kept, found[4].kept) == (True, True)
    assert (found[5].measured, found[5].kept) == ("in 6 of 7", False)


def test_what_is_said_of_the_settings(tmp_path: Path) -> None:
    ratios = dict.fromkeys(SETTINGS, (0.999, 1.0)) | {"glyphs-6": (1.2, 1.1), "discs-24": (0.8, 1.1)}
    results = settings(tmp_path, ratios, dict.fromkeys(SETTINGS, "no"))
    for seed, cost in enumerate((0.01, -0.01, 0.0)):
        results.add(of_setting("glyphs-6", PAIR, seed, 1.2 * (10.0 + seed), held_out=0.5 + cost))
    said, short = (part(results).replace("\n", " ") for part in (page._settings, page._foretold))
    assert "**6 of 7 predictions were right.** LayerSync helped in 1 (bouncing discs (Wan), 24 blocks)" in said
    assert "and yes was said of none" in said
    assert "in 1 (bouncing discs (Wan), 24 blocks), and further from it in 1." in short
    assert "was right in 6; it said yes to none" in short
    assert "To say no always would have been right in 6." in said
    assert (
        "further from the data, beyond chance, in 1 (glyphs, 6 blocks), and the held-out loss is higher in 6 (" in said
    )


def test_no_setting_is_judged_before_its_last_training(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(SETTINGS, (1.2, 1.1))
    results = settings(tmp_path, nowhere, dict.fromkeys(SETTINGS, "no"))
    del results.records[f"discs-24/{CUT_OFF}/2"]
    assert [one.kept for one in expectations.of_settings(results)[2:]] == [None] * 4
    assert "Not finished" not in page._settings(results)
    del results.records[f"discs-24/{CUT_OFF}/1"]
    assert page._settings(results).startswith("Not finished: 6 of 7")


@pytest.mark.parametrize(
    ("ratio", "cost", "kept"),
    [(0.7, 0.01, [True, True]), (0.5, 0.01, [False, True]), (0.95, 0.01, [False, True]), (0.7, -0.01, [True, False])],
)
def test_the_repetition(ratio: float, cost: float, kept: list[bool], tmp_path: Path) -> None:
    (tmp_path / "repetition").mkdir()
    results = STUDIES["repetition"].results(tmp_path)
    assert [(one.measured, one.kept) for one in expectations.of_repetition(results)] == [("–", None)] * 2
    for job in results.jobs[:-1]:
        theirs, ours = 8.0 + 0.1 * job.seed, (8.0 + 0.1 * job.seed) * (ratio + 0.001 * job.seed)
        vanilla = job.arm == VANILLA
        results.add(
            of_setting(job.task, job.arm, job.seed, theirs if vanilla else ours, held_out=0.5 + cost * (not vanilla))
        )
    assert [one.kept for one in expectations.of_repetition(results)] == [None, None]
    results.add(of_setting("discs-24", PAIR, 7, 8.7 * (ratio + 0.007), held_out=0.5 + cost))
    assert [one.kept for one in expectations.of_repetition(results)] == kept
    assert (
        page.settings_report.repetition(results)
        .splitlines()[2]
        .startswith(f"| 5 | 8.50 | {8.5 * (ratio + 0.005):.2f} |")
    )


def test_a_repetition_that_chance_explains_is_no_gain(tmp_path: Path) -> None:
    (tmp_path / "repetition").mkdir()
    results = STUDIES["repetition"].results(tmp_path)
    for seed, ours in ((5, 5.0), (6, 9.0), (7, 6.0)):
        results.add(of_setting("discs-24", VANILLA, seed, 8.0))
        results.add(of_setting("discs-24", PAIR, seed, ours))
    first, _ = expectations.of_repetition(results)
    assert first.kept is False
