"""The repetition of one setting: what was expected of it, and what the pages say of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.effect import expectations, page
from benchmarks.effect.arms import PAIR, VANILLA
from benchmarks.effect.results import Results
from benchmarks.effect.studies import STUDIES
from tests.effect_made import lost, of_setting


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
    assert "is being trained again" in page._again(results, results)
    results.add(of_setting("discs-24", PAIR, 7, 8.7 * (ratio + 0.007), held_out=0.5 + cost))
    assert [one.kept for one in expectations.of_repetition(results)] == kept
    assert (
        page.settings_report.repetition(results)
        .splitlines()[2]
        .startswith(f"| 5 | 8.50 | {8.5 * (ratio + 0.005):.2f} |")
    )


def repetition(folder: Path, distances: tuple[float, float, float]) -> Results:
    (folder / "repetition").mkdir()
    results = STUDIES["repetition"].results(folder)
    for seed, ours in enumerate(distances, 5):
        results.add(of_setting("discs-24", VANILLA, seed, 8.0))
        results.add(of_setting("discs-24", PAIR, seed, ours, held_out=0.51))
    return results


def test_a_repetition_that_chance_explains_is_no_gain(tmp_path: Path) -> None:
    results = repetition(tmp_path, (5.0, 9.0, 6.0))
    assert [one.kept for one in expectations.of_repetition(results)] == [False, True]
    assert "so not shown to be closer to the data" in page._again(results, results).replace("\n", " ")


def test_a_gain_that_is_larger_than_expected_is_a_gain(tmp_path: Path) -> None:
    results = repetition(tmp_path, (4.0, 4.1, 4.2))
    assert expectations.of_repetition(results)[0].kept is False
    said = page._again(results, results)
    assert "multiplied by 0.50 and 0.51 (then by 0.53): on the others it was by 0.51 (0.48 to 0.54), so closer" in said


@pytest.mark.parametrize(
    ("distances", "said"),
    [
        (
            (4.0, 4.1, 4.2),
            "a gain was shown in samples of bouncing discs (Wan), 24 blocks, trained again with other seeds",
        ),
        ((5.0, 9.0, 6.0), "a gain in loss or samples was not shown anywhere"),
    ],
)
def test_the_first_sentence(distances: tuple[float, float, float], said: str, tmp_path: Path) -> None:
    again = repetition(tmp_path, distances)
    main, depth, settings = (STUDIES[name].results(tmp_path) for name in ("effect", "depth", "settings"))
    answer = page._answer(main, depth, settings, again).replace("\n", " ")
    assert f"On the small models that were trained here {said}" in answer


def test_a_training_that_diverged_keeps_no_expectation(tmp_path: Path) -> None:
    results = repetition(tmp_path, (5.0, 5.1, 5.2))
    assert [one.kept for one in expectations.of_repetition(results)] == [True, True]
    results.add(lost(of_setting("discs-24", PAIR, 7, 5.0)))
    assert [one.kept for one in expectations.of_repetition(results)] == [False, False]
