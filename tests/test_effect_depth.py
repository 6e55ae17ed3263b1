"""The study of depth: what it leaves out, measures, plans and reports; what it finds, no test judges."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.effect import training
from benchmarks.effect.arms import (
    DEEP,
    DEEP_ARMS,
    DEEP_QUICK,
    PAIR,
    VANILLA,
    Job,
    Scale,
    between,
    deep_plan,
    thirds,
)
from benchmarks.effect.depth import blocks_of, changes, left_out, losses_without, named, runs
from benchmarks.effect.depth_report import depth_of, table
from benchmarks.effect.measures import Exam
from benchmarks.effect.results import Mark, Record
from benchmarks.effect.studies import STUDIES
from benchmarks.effect.tasks import DEEP_TASKS, TASKS, Task
from layersync_core.testing import randomise_weights
from tests.effect_made import of_depth as record
from tests.effect_records import ROOT

SMALL = dataclasses.replace(DEEP_QUICK, evaluated=4, samples=16)


def built(task: Task) -> nn.Module:
    return randomise_weights(task.tiny_model()).eval()


def output(model: nn.Module, task: Task) -> torch.Tensor:
    torch.manual_seed(0)
    return model(**task.example_inputs(model, 2)).sample


# Measures.


@pytest.mark.parametrize("task", [DEEP_TASKS["digits-8"], TASKS["shapes"]], ids=["dit", "wan"])
def test_a_model_without_some_blocks_is_one_that_never_had_them(task: Task) -> None:
    model = built(task)
    plain = output(model, task)
    with left_out(model, [3, 4]):
        cut = output(model, task)
    assert torch.equal(output(model, task), plain)
    del blocks_of(model)[2:4]
    assert torch.equal(output(model, task), cut)
    assert not torch.allclose(cut, plain, atol=1e-3)


def test_blocks_come_back_after_an_error() -> None:
    model = built(DEEP_TASKS["digits-8"])
    with pytest.raises(ZeroDivisionError), left_out(model, [1]):
        raise ZeroDivisionError
    assert not [block for block in blocks_of(model) if "forward" in vars(block)]


def test_every_run_is_left_out_by_its_name() -> None:
    assert len(runs(12)) == 12 + 11 + 10 + 9
    assert runs(12, (5, 8)) == runs(12)
    assert runs(24, (9, 16))[-1] == (9, 16)
    assert [named(*run) for run in ((5, 5), (5, 8))] == ["5", "5-8"]
    model = built(DEEP_TASKS["digits-8"])
    losses = losses_without(model, runs(8), lambda cut: sum("forward" in vars(block) for block in blocks_of(cut)) + 0.5)
    assert losses["3"] == 1.5
    assert losses["2-5"] == 4.5


def test_a_change_is_relative_to_what_the_block_is_given() -> None:
    task = DEEP_TASKS["digits-8"]
    model = built(task)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = blocks_of(model)[2].register_forward_hook(lambda m, given, out: seen.append((given[0], out)))
    with left_out(model, [5]):
        found = changes(model, lambda whole: output(whole, task))
    hook.remove()
    ((given, out),) = seen
    assert found[2] == pytest.approx(float(((out - given).norm(dim=-1) / given.norm(dim=-1)).mean()))
    assert found[2] > 0.01
    assert found[4] == 0
    assert len(found) == 8


# Arms.


def test_the_pair_is_that_of_the_thirds() -> None:
    assert [thirds(blocks) for blocks in (8, 12, 24)] == [(3, 5), (4, 8), (8, 16)]
    assert between((4, 8)) == (5, 8)
    assert DEEP_ARMS[PAIR].pair_of(0, 24) == (8, 16)


def run(arm: str, task: str = "digits-8", scale: Scale = SMALL) -> Record:
    return training.train(Job(task, arm, 0, scale.steps), scale)


@pytest.mark.slow
@pytest.mark.parametrize("arm", DEEP_ARMS)
def test_each_arm_is_trained_and_measured_whole(arm: str) -> None:
    record = run(arm)
    assert record.is_whole(SMALL, deep_plan(SMALL))
    blocks = 6 if arm == "never-there" else 8
    assert len(depth_of(record).change) == blocks
    assert set(record.marks[1].probe) == {"0.2", "0.5", "0.8"}
    assert depth_of(record).whole != depth_of(record).without["1"]


def test_stochastic_depth_leaves_blocks_between_the_pair_out_by_chance() -> None:
    arm, pair = DEEP_ARMS["stochastic-depth"], (4, 8)
    drawn = [training._dropped(arm, pair, 3, step) for step in range(400)]
    assert drawn == [training._dropped(arm, pair, 3, step) for step in range(400)]
    assert {block for blocks in drawn for block in blocks} == {5, 6, 7, 8}
    assert 700 < sum(map(len, drawn)) < 900
    assert training._dropped(DEEP_ARMS[PAIR], pair, 3, 0) == []


def test_a_block_that_is_left_out_gets_no_gradient() -> None:
    task = DEEP_TASKS["digits-8"]
    model = built(task)
    with left_out(model, [4]):
        output(model, task).square().sum().backward()
    trained = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"2", "4"} < trained
    assert "3" not in trained


def test_cutting_off_late_differs_from_cutting_off_early(monkeypatch: pytest.MonkeyPatch) -> None:
    # Probes and samples take most of a short training.
    monkeypatch.setattr(Exam, "examine", lambda *_: Mark.model_construct())
    scale = dataclasses.replace(SMALL, steps=6, short=6, data=400, evaluated=400)
    losses = {arm: [loss for _, loss in run(arm, scale=scale).curve] for arm in (PAIR, "cut-off", "cut-off-late")}
    assert losses["cut-off"][:2] == losses[PAIR][:2]
    assert losses["cut-off"][2] != losses[PAIR][2]
    assert losses["cut-off-late"][:4] == losses[PAIR][:4]
    assert losses["cut-off-late"][4] != losses[PAIR][4]


def test_the_plan() -> None:
    jobs = deep_plan(DEEP)
    assert len({job.key for job in jobs}) == len(jobs) == 3 * (2 * 5 + 4 * 3)
    assert {(job.task, job.arm) for job in jobs[:6]} == {(task, arm) for task in DEEP_TASKS for arm in (VANILLA, PAIR)}
    assert {job.seed for job in jobs[-12:]} == {3, 4}, "more seeds are what a short budget leaves out first"


# Results and report.


def test_the_table_has_the_rise_without_the_blocks_between(tmp_path: Path) -> None:
    results = STUDIES["depth"].results(tmp_path)
    (tmp_path / "depth").mkdir()
    for seed in range(3):
        results.add(record(VANILLA, seed, 0.4, 0.6))
        results.add(record(PAIR, seed, 0.41 + 0.001 * seed, 0.42 + 0.001 * seed))
    results.add(record("never-there", 0, 0.39, 0))
    rows = [line.strip("| ").split(" | ") for line in table(results).splitlines()[2:]]
    vanilla, pair, never = rows
    assert vanilla[:5] == ["12", "vanilla", "3", "0.4000", "+50.0% (+50.0% to +50.0%)"]
    assert pair[3].startswith("**+0.0110 (+0.0085 to +0.0135)**")
    assert pair[4] == "+2.4% (+2.4% to +2.4%)"
    assert never[2:5] == ["1", "−0.0100 (one seed)", "–"]
    STUDIES["depth"].write_report(tmp_path / "depth", results)
    rows = [line.strip("| ").split(" | ") for line in (tmp_path / "depth" / "runs.md").read_text().splitlines()[4:]]
    assert len(rows) == 2 * len(runs(12)) + len(runs(8))
    assert rows[0] == ["12", "vanilla", "1", "+100.00%", "0.100", "0.500", "0.500", "0.500"]
    assert ["12", "vanilla", "5-8", "+50.00%", "–", "–", "–", "–"] in rows
    assert (tmp_path / "depth" / "depth.png").read_bytes().startswith(b"\x89PNG")
    assert STUDIES["depth"].results(tmp_path).records == results.records


@pytest.mark.parametrize("change", ["depth", "probe", "without"])
def test_what_was_not_measured_whole_is_none_of_its_results(change: str) -> None:
    whole = record(PAIR, 0, 0.4, 0.6)
    mark = whole.marks[DEEP.steps]
    assert mark.depth is not None
    other = {
        "depth": {"depth": None},
        "probe": {"probe": {"0.2": [0.5] * 12}},
        "without": {"depth": mark.depth.model_copy(update={"without": {"1": 0.5}})},
    }[change]
    cut = whole.model_copy(update={"marks": {DEEP.steps: mark.model_copy(update=other)}})
    assert whole.is_whole(DEEP, deep_plan(DEEP))
    assert not cut.is_whole(DEEP, deep_plan(DEEP))


def test_what_is_trained_so_far_was_planned() -> None:
    assert len(STUDIES["depth"].results(ROOT / "docs" / "effect").records) > 4


def test_the_folder_of_results_says_which_study_they_are_of(tmp_path: Path) -> None:
    for study in STUDIES.values():
        (tmp_path / study.folder).mkdir(exist_ok=True)
    STUDIES["depth"].results(tmp_path).add(record(VANILLA, 0, 0.4, 0.6))
    found = {name: len(study.results(tmp_path).records) for name, study in STUDIES.items()}
    assert found == {"effect": 0, "depth": 1, "settings": 0, "repetition": 0}
