"""The page on the effect: its figures are those of the results, and expectations stand beside what came out."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.effect import expectations, page
from benchmarks.effect.arms import CUT_OFF, DEEP_ARMS, PAIR, VANILLA
from benchmarks.effect.measures import CALLED, CALLED_AT_ONCE, DEPTH_TIME
from benchmarks.effect.results import Compared
from benchmarks.effect.studies import STUDIES
from benchmarks.effect.tasks import DEEP_TASKS, SETTINGS
from tests.effect_made import lost, of_depth, of_setting, settings
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
    drawn = page.depth_report.lines(STUDIES["depth"].results(folder))
    with Image.open(folder / "depth" / "depth.png") as picture:
        assert picture.info["Description"] == page.depth_report.fingerprint(drawn)


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
    assert [(one.measured, one.kept) for one in found[:1] + found[3:5] + found[6:]] == [
        ("no in 7 of 7", True),
        ("in 0 of 7", True),
        ("7 of 7; to say no always would be right in 7", True),
        ("in 7 of 7", True),
    ]
    # Every setting costs the same here, so not the one of 6 blocks most.
    assert (found[5].measured, found[5].kept) == (f"shown in 7 of 7, most in {SETTINGS['glyphs-24'].title}", False)
    assert found[1].kept is False, "the reasons are not those that were expected"


def test_expectations_of_the_settings_that_are_not_kept(tmp_path: Path) -> None:
    helped = {task: (0.8, 1.1) if place < 3 else (1.2, 1.1) for place, task in enumerate(SETTINGS)}
    answers = {task: "yes" if place < 2 else "no" for place, task in enumerate(SETTINGS)}
    first, _, _, second, third, *_ = expectations.of_settings(settings(tmp_path, helped, answers))
    assert (first.measured[:12], first.kept) == ("no in 5 of 7", False)
    assert second.kept is False
    assert (third.measured, third.kept) == ("6 of 7; to say no always would be right in 4", True)
    assert SETTINGS["glyphs-24"].title in second.measured


def test_five_right_predictions_and_two_gains_are_too_few_and_too_many(tmp_path: Path) -> None:
    helped = {task: (0.8, 1.1) if place < 2 else (1.2, 1.1) for place, task in enumerate(SETTINGS)}
    found = expectations.of_settings(settings(tmp_path, helped, dict.fromkeys(SETTINGS, "no")))
    assert (found[3].kept, found[4].kept) == (False, False)
    assert found[4].measured.startswith("5 of 7")


def test_reasons_and_costs_as_expected(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(SETTINGS, (1.2, 1.1))
    results = settings(tmp_path, nowhere, dict.fromkeys(SETTINGS, "no"))
    for task, described in SETTINGS.items():
        first = results.records[f"{task}/{VANILLA}/0"]
        assert first.call is not None
        why = "no teacher separates" if described.blocks > 6 else "there is no depth to spare"
        lead = Compared(
            student=4, teacher=7, lead=0.05 - 0.01 * (task != "glyphs-12-fine"), error=0.1, centred=0.5, rise=None
        )
        called = first.call.model_copy(update={"reason": why, "compared": [lead]})
        results.add(first.model_copy(update={"call": called}))
    for seed in range(3):
        results.add(of_setting("glyphs-6", PAIR, seed, 20.0, held_out=0.6 + 0.001 * seed))
        results.add(of_setting("glyphs-12", CUT_OFF, seed, 20.0, held_out=0.6 + 0.001 * seed))
    found = expectations.of_settings(results)
    assert (found[1].kept, found[2].kept, found[5].kept) == (True, True, True)
    assert (found[6].measured, found[6].kept) == ("in 6 of 7", False)


def test_what_is_said_of_the_settings(tmp_path: Path) -> None:
    ratios = dict.fromkeys(SETTINGS, (0.999, 1.0)) | {"glyphs-6": (1.2, 1.1), "discs-24": (0.8, 1.1)}
    results = settings(tmp_path, ratios, dict.fromkeys(SETTINGS, "no"))
    for seed, cost in enumerate((0.01, -0.01, 0.0)):
        results.add(of_setting("glyphs-6", PAIR, seed, 1.2 * (10.0 + seed), held_out=0.5 + cost))
    (tmp_path / "repetition").mkdir()
    again = STUDIES["repetition"].results(tmp_path)
    said, short = (text.replace("\n", " ") for text in (page._settings(results), page._foretold(results, again)))
    assert "**6 of 7 predictions were right.** LayerSync helped in 1 (bouncing discs (Wan), 24 blocks)" in said
    assert "and yes was said of none" in said
    assert "in 1 (bouncing discs (Wan), 24 blocks), and further from it in 1 if the term stayed on" in short
    assert "to the end, in 3 if it was cut off at a third; the held-out loss was higher in 6 and 7." in short
    assert "said yes to none and was right in 6; a rule that always says no would have been right in 6." in short
    assert "is being trained again" in short
    assert "To say no always would have been right in 6." in said
    assert "further from the data, beyond chance, in 1 (glyphs, 6 blocks), and the held-out loss is higher," in said
    assert "beyond chance, in 6 (" in said


def test_no_setting_is_judged_before_its_last_training(tmp_path: Path) -> None:
    nowhere = dict.fromkeys(SETTINGS, (1.2, 1.1))
    results = settings(tmp_path, nowhere, dict.fromkeys(SETTINGS, "no"))
    del results.records[f"discs-24/{CUT_OFF}/2"]
    assert [one.kept for one in expectations.of_settings(results)[3:]] == [None] * 4
    assert page._settings(results).endswith("68 of 69 trainings are in so far.\n")
    del results.records[f"discs-24/{CUT_OFF}/1"]
    assert page._settings(results).startswith("Not finished: 6 of 7")


def test_a_depth_at_which_every_training_diverged_keeps_no_expectation(tmp_path: Path) -> None:
    assert depth(tmp_path, AS_EXPECTED)[2] is True
    results = STUDIES["depth"].results(tmp_path)
    for key, one in [*results.records.items()]:
        if one.task == "digits-12" and one.arm == PAIR:
            results.records[key] = lost(one)
    assert expectations.of_depth(results)[2].kept is False


def test_an_arm_that_diverged_does_not_keep_its_setting_without_an_outcome(tmp_path: Path) -> None:
    results = settings(tmp_path, dict.fromkeys(SETTINGS, (0.8, 0.8)), dict.fromkeys(SETTINGS, "no"))
    for seed in range(3):
        results.add(lost(of_setting("glyphs-6", PAIR, seed, 8.0)))
    assert page.outcome(results, "glyphs-6") == "yes"
    for seed in range(3):
        results.add(lost(of_setting("glyphs-6", CUT_OFF, seed, 8.0)))
    assert page.outcome(results, "glyphs-6") == "no"


def test_the_start_says_which_depths_and_how_many_trainings(tmp_path: Path) -> None:
    depth(tmp_path, AS_EXPECTED, fewer=1)
    said = page._short(STUDIES["depth"].results(tmp_path)).replace("\n", " ")
    assert "rises by 50%, 50% and 50% (8, 12 and 24 blocks) if they were trained without" in said
    assert "**LayerSync spends depth.**" in said
    assert (
        "lower with it, beyond chance, at none of these depths, and higher at 8 blocks, 12 blocks and 24 blocks" in said
    )
    assert "that rise is 45%, 45% and 45%: half of the depth or more comes back at 8, 12 and 24 blocks." in said
    assert "never had these blocks differs by +2.6%, +1.7% and +0.9% from vanilla's." in said
    assert said.endswith("65 of 66 trainings are in so far. ")


def test_the_start_says_that_depth_stays_gone(tmp_path: Path) -> None:
    depth(tmp_path, AS_EXPECTED | {"cut-off": (0.4, 0.42)})
    said = page._short(STUDIES["depth"].results(tmp_path)).replace("\n", " ")
    assert "that rise is 5%, 5% and 5%: most of the depth stays gone." in said


def test_the_start_of_an_empty_study(tmp_path: Path) -> None:
    assert page._short(STUDIES["depth"].results(tmp_path)) == "Nothing is trained yet.\n"


def test_the_command_on_the_page_measures_what_the_prediction_was_made_from() -> None:
    command = f"--noise_levels {DEPTH_TIME} --batches {CALLED // CALLED_AT_ONCE} --batch_size {CALLED_AT_ONCE}"
    assert command in (ROOT / "docs" / "effect.md").read_text()
