"""The benchmark of the effect: what it plans, keeps and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.effect.arms import ARMS, FULL, PAPER, Arm, plan
from benchmarks.effect.report import table, write_report
from benchmarks.effect.results import FILE, Results, machine
from layersync_core import ConfigError
from tests.effect_records import MANY, ROOT, record


def test_the_plan() -> None:
    jobs = plan(FULL)
    main = [job for job in jobs if job.steps == 3000]
    assert {(job.arm, job.seed) for job in main} == {(arm, seed) for arm in ("vanilla", "pair") for seed in range(5)}
    others = {(job.task, job.arm) for job in jobs if job.steps == 1000}
    assert others == {("digits", arm) for arm in set(ARMS) - {"vanilla", "pair"}} | {
        (task, arm) for task in ("faces", "shapes") for arm in ("vanilla", "pair")
    }
    assert all(sum(job.task == task and job.arm == arm for job in jobs) == 3 for task, arm in others)
    assert len({job.key for job in jobs}) == len(jobs)


def test_random_pairs_are_others_for_each_seed() -> None:
    arm = ARMS["random"]
    pairs = [arm.pair_of(seed) for seed in range(3)]
    assert pairs == [arm.pair_of(seed) for seed in range(3)]
    assert len(set(pairs)) == 3
    assert all(1 <= student < teacher <= 12 for student, teacher in pairs)
    assert PAPER not in pairs
    assert Arm("x").pair_of(0) == PAPER


def cells(shown: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in shown.splitlines() if line and "---" not in line]


def test_the_table_pairs_seeds_and_marks_what_its_interval_supports(tmp_path: Path) -> None:
    results = Results(tmp_path, MANY)
    for seed, (vanilla, pair) in enumerate([(0.5, 0.61), (0.3, 0.4), (0.4, 0.52)]):
        results.add(record("vanilla", seed, vanilla))
        results.add(record("pair", seed, pair))
    results.add(record("weight-0.5", 1, 0.25, steps=2))
    results.add(record("self", 7, 0.9, steps=2))  # no vanilla arm to compare with
    first, second = (cells(part) for part in table(results).split("\n\n"))
    assert [line[0] for line in first[1:]] == ["digits, 4", "digits", "digits, 4", *["digits, 2"] * 3]
    assert first[1][2:7] == ["3", "0.400", "0.400", "0.200", "0.6000"]
    assert first[2][1:9] == ["held-out samples", *["–"] * 5, "0.50", "0.970"]
    assert first[3][3] == "**+0.110 (+0.085 to +0.135)**"
    assert first[3][7:9] == ["+0.00 (+0.00 to +0.00)", "–"]
    assert first[3][9] == "+0.110 (+0.085 to +0.135)", "the term pulls at the similarity itself"
    assert first[6][3] == "−0.050 (one seed)"
    assert second[1][:4] == ["digits, 2", "weight 0.5", "1", "−0.150 (one seed)"]
    assert len(second) == 2
    assert Results(tmp_path, MANY).records == results.records


def test_differences_that_are_alike_by_chance_support_nothing(tmp_path: Path) -> None:
    results = Results(tmp_path, MANY)
    for seed, vanilla in enumerate((0.9, 0.8, 0.7)):  # differences alike but for rounding
        results.add(record("vanilla", seed, vanilla))
        results.add(record("pair", seed, vanilla + 0.01))
    assert cells(table(results))[3][3] == "+0.010 (+0.010 to +0.010)"


def test_trainings_that_diverged_are_counted(tmp_path: Path) -> None:
    results = Results(tmp_path, MANY)
    results.add(record("vanilla", 0, 0.5))
    results.add(record("pair", 0, 0.6, diverged=4))
    results.add(record("weight-0.5", 0, 0.6, steps=2, diverged=2))
    shown = {(line[0], line[1]): line[2:] for line in cells(table(results).split("\n\n")[0])}
    pair, heavy = ARMS["pair"].title, ARMS["weight-0.5"].title
    assert shown["digits, 4", pair] == ["0 (1 diverged)", *["–"] * 9]
    assert shown["digits, 2", pair][:2] == ["1", "+0.100 (one seed)"], "it came so far"
    assert shown["digits, 2", heavy][0] == "0 (1 diverged)"
    write_report(tmp_path, results)
    again = Results(tmp_path, MANY)
    assert not {"digits/pair/0", "digits/weight-0.5/0"} & {job.key for job in again.missing(plan(MANY))}


@pytest.mark.parametrize("diverged", [2, 4])
def test_a_vanilla_training_that_diverged_leaves_the_seed_out(tmp_path: Path, diverged: int) -> None:
    results = Results(tmp_path, MANY)
    results.add(record("vanilla", 0, 0.5, diverged=diverged))
    results.add(record("pair", 0, 0.6))
    shown = {(line[0], line[1]): line[2] for line in cells(table(results).split("\n\n")[0])}
    pair = ARMS["pair"].title
    assert shown["digits, 4", "vanilla"] == shown["digits, 4", pair] == "0 (1 diverged)"
    assert shown["digits, 2", pair] == ("1" if diverged == 4 else "0 (1 diverged)")
    write_report(tmp_path, results)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight": 0.3}, "not this version's 'pair' arm"),
        ({"arm": "other"}, "no task 'digits' with an arm 'other'"),
        ({"seed": 1}, "not what this version trains"),  # no longer the one of its key
        ({"steps": 2}, "not what this version trains"),
        ({"marks": {}}, "not what this version trains"),
        ({"curve": [[4, 0.1]]}, "not what this version trains"),
        ({"diverged": -5}, "not what this version trains"),
        ({"curve": "steep"}, "curve Input should be a valid list"),
        ({"curve": [[2, float("nan")], [4, 0.1]]}, "curve.0.1 Input should be a finite number"),
        ({"mood": "good"}, "mood Extra inputs are not permitted"),
    ],
)
def test_a_training_that_this_version_would_not_make_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    Results(tmp_path, MANY).add(record("pair", 0, 0.6))
    found = json.loads((tmp_path / FILE).read_text())
    found["records"]["digits/pair/0"].update(change)
    (tmp_path / FILE).write_text(json.dumps(found))
    with pytest.raises(ConfigError, match="remove that training from the file") as caught:
        Results(tmp_path, MANY)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_trainings_of_other_versions_are_named(tmp_path: Path) -> None:
    results = Results(tmp_path, MANY)
    here = machine(torch.device("cpu"))
    results.add(record("vanilla", 0, 0.5).model_copy(update={"machine": here}))
    results.add(record("pair", 0, 0.5).model_copy(update={"machine": {**here, "torch": "1.0"}}))
    assert results.from_elsewhere() == ["digits/pair/0"]


def test_the_page_shows_the_table_of_its_results() -> None:
    page = (ROOT / "docs" / "ablations.md").read_text()
    shown = page.split("<!-- table -->\n")[1].split("<!-- /table -->")[0]
    assert shown == table(Results(ROOT / "docs" / "effect", FULL))
