"""The study of settings and the run for a GPU: data, plan, prediction and outcome; what is found, no test judges."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.effect import __main__ as command
from benchmarks.effect import training
from benchmarks.effect.__main__ import main
from benchmarks.effect.arms import (
    CUT_OFF,
    GPU_QUICK,
    PAIR,
    SETTING,
    SETTING_QUICK,
    VANILLA,
    Job,
    gpu_plan,
    repetition_plan,
    settings_plan,
)
from benchmarks.effect.drawn import PLAIN
from benchmarks.effect.expectations import wanted
from benchmarks.effect.results import Call, Compared, Results
from benchmarks.effect.settings_report import call_of, outcome, predictions, right, table
from benchmarks.effect.studies import GPU_STUDY, STUDIES
from benchmarks.effect.tasks import GPU_TASK, MAIN_SETTING, ON_GPU, SETTINGS, faint, plain_glyphs
from layersync_core import Block, Findings, SkippedRun
from layersync_core.testing import randomise_weights
from tests.effect_made import of_setting as record
from tests.effect_made import settings as made
from tests.suggest.test_verdict import every, findings

SMALL = dataclasses.replace(SETTING_QUICK, evaluated=4, samples=16)


# Settings.


def test_settings_differ_in_depth_data_labels_and_noise_and_none_is_digits() -> None:
    assert len(SETTINGS) >= 6
    assert {task.blocks for task in SETTINGS.values()} >= {6, 12, 24}
    assert {task.family for task in SETTINGS.values()} == {"dit", "wan"}
    assert {task.labels for task in SETTINGS.values()} == {None, "class_labels"}
    names = {name: task.source(task.shape)[0] for name, task in SETTINGS.items()}
    assert set(names.values()) == {"glyphs", "faint glyphs", "bouncing discs"}


def test_faint_samples_are_the_same_with_less_contrast() -> None:
    (_, plain, labels), (_, pale, same) = plain_glyphs((1, 8, 8)), faint(plain_glyphs)((1, 8, 8))
    assert torch.equal(labels, same)
    assert len(labels.unique()) == len(PLAIN)
    assert torch.allclose(pale, 0.4 * plain)


def test_a_model_that_is_not_told_the_class_does_not_get_it() -> None:
    task = SETTINGS["glyphs-6"]
    model = randomise_weights(task.tiny_model()).eval()
    exam = training.exam_of("glyphs-6", SMALL, torch.device("cpu"))
    noisy, time = torch.randn(4, 1, 8, 8), torch.full((4,), 0.5)
    one, other = (exam.feed(model, noisy, time, torch.full((4,), label)) for label in (0, 1))
    assert torch.equal(one, other)
    told = SETTINGS["glyphs-24-told"]
    model = randomise_weights(told.tiny_model()).eval()
    feed = training.Feed(told, model)
    one, other = (feed(model, noisy, time, torch.full((4,), label)) for label in (0, 1))
    assert not torch.allclose(one, other, atol=1e-4)


def test_the_plan() -> None:
    jobs = settings_plan(SETTING)
    assert len({job.key for job in jobs}) == len(jobs) == 3 * 3 * len(SETTINGS) + 2 * 3
    first = [job.arm for job in jobs[: 3 * len(SETTINGS)]]
    assert set(first) == {VANILLA}, "predictions come before any other arm"
    assert [job.task for job in jobs[-6:]] == [MAIN_SETTING] * 6
    assert {job.seed for job in jobs[-6:]} == {3, 4}


def test_the_repetition_uses_no_seed_that_was_used_before() -> None:
    jobs = repetition_plan(SETTING)
    assert [(job.arm, job.seed) for job in jobs] == [(arm, seed) for seed in (5, 6, 7) for arm in (VANILLA, PAIR)]
    assert {job.task for job in jobs} == {"discs-24"}
    assert not {job.seed for job in jobs} & {job.seed for job in settings_plan(SETTING)}
    assert not any(job.is_called for job in jobs)


# Trainings in their smallest form.


@pytest.mark.slow
@pytest.mark.parametrize("task", ["glyphs-6", "discs-24"])
def test_a_vanilla_model_is_measured_and_a_prediction_made(task: str) -> None:
    record = training.train(Job(task, VANILLA, 0, 1), SMALL)
    assert record.is_whole(SMALL, settings_plan(SMALL))
    assert record.call is not None
    assert record.call.answer in ("yes", "no")
    assert len(record.marks[1].probe["0.5"]) == SETTINGS[task].blocks
    assert not record.model_copy(update={"call": None}).is_whole(SMALL, settings_plan(SMALL))
    pair = training.train(Job(task, PAIR, 0, 1), SMALL)
    assert pair.call is None
    assert pair.is_whole(SMALL, settings_plan(SMALL))


def test_a_prediction_is_what_suggest_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed, samples and noise as the command uses on the same data."""
    from benchmarks.effect import measures

    asked: list[Any] = []
    found = Findings("Made", [Block(index, f"blocks.{index}", "blocks", 8, "", 6) for index in range(6)], [0.5])
    for name, value in (("cka", 0.5), ("cosine", 0.5), ("centered_cosine", 0.6), ("gap", 0.2), ("gap_error", 0.01)):
        setattr(found, name, [[[value] * 6] * 6])
    found.probe = [[0.4] * 6]
    found.forwards, found.samples, found.loss, found.between = 16, 1024, 2.0, [SkippedRun(3, 4, 0.1)]

    def measure(config: Any, *others: Any, **further: Any) -> Findings:
        asked.append(config)
        return found

    monkeypatch.setattr(measures, "measure", measure)
    exam = dataclasses.replace(training.exam_of("glyphs-6", SMALL, torch.device("cpu")), scale=SETTING)
    call = exam.call(torch.nn.Identity())
    assert (call.answer, call.pair, call.stop) == ("yes", (2, 4), 1 / 3)
    assert call.reason == found.content()["verdict"]["reason"]
    assert call.compared == [Compared(student=2, teacher=4, lead=0.2, error=0.01, centred=0.6, rise=0.05)]
    (config,) = asked
    assert config.noise_levels == (0.5,)
    assert config.batches * config.batch_size == 1024


# Prediction and outcome.


def test_a_prediction_is_right_where_it_says_what_happened(tmp_path: Path) -> None:
    ratios = {"glyphs-24": (0.8, 1.2), "glyphs-12": (1.1, 1.0), "glyphs-6": (1.1, 0.9), "discs-24": (1.2, 1.1)}
    answers = {"glyphs-24": "yes", "glyphs-12": "yes", "glyphs-6": "no", "discs-24": "no"}
    results = made(tmp_path, ratios, answers)
    assert [outcome(results, task) for task in ratios] == ["yes", "no", "yes", "no"]
    assert right(results) == (2, 4)
    rows = [line.strip("| ").split(" | ") for line in table(results).splitlines()[2:]]
    assert [(row[0], row[4], row[-2], row[-1]) for row in rows] == [
        (SETTINGS["glyphs-24"].title, "yes", "yes", "right"),
        (SETTINGS["glyphs-12"].title, "yes", "no", "wrong"),
        (SETTINGS["glyphs-6"].title, "no", "yes", "wrong"),
        (SETTINGS["discs-24"].title, "no", "no", "right"),
    ]
    assert [row[1:3] for row in rows[:2]] == [["5", "+0.080"], ["3", "+0.040"]]
    assert rows[0][7].startswith("**0.802 (")
    assert rows[0][9].startswith("**+0.0120 (")
    assert (rows[0][3], rows[0][5:7]) == ("–", ["0.50", "12.00"])
    assert STUDIES["settings"].results(tmp_path).records == results.records


def test_one_seed_has_no_outcome(tmp_path: Path) -> None:
    (tmp_path / "settings").mkdir()
    results = STUDIES["settings"].results(tmp_path)
    results.add(record("glyphs-6", VANILLA, 0, 10.0, "yes"))
    assert outcome(results, "glyphs-6") is None
    for arm in (PAIR, CUT_OFF):
        results.add(record("glyphs-6", arm, 0, 5.0))
    assert outcome(results, "glyphs-6") is None
    assert right(results) == (0, 0)
    assert table(results).splitlines()[2].endswith("| – | – |")


def test_a_difference_that_may_be_chance_is_no_help(tmp_path: Path) -> None:
    results = made(tmp_path, {"glyphs-6": (0.95, 1.0)}, {"glyphs-6": "no"})
    results.add(record("glyphs-6", PAIR, 2, 14.0))
    assert outcome(results, "glyphs-6") == "no"


def test_the_prediction_is_the_first_seeds(tmp_path: Path) -> None:
    (tmp_path / "settings").mkdir()
    results = STUDIES["settings"].results(tmp_path)
    results.add(record("glyphs-6", VANILLA, 1, 10.0, "yes"))
    assert call_of(results, "glyphs-6") is None
    results.add(record("glyphs-6", VANILLA, 0, 10.0, "no"))
    found = call_of(results, "glyphs-6")
    assert found is not None
    assert found.answer == "no"
    (line,) = predictions(results)
    assert line == "glyphs, 6 blocks: gap at noise 0.5 +0.020, +0.020; likely to help? no: as made"


def test_predictions_are_printed_before_any_other_arm_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train_all(jobs: list[Job], results: Results, *others: Any) -> list[str]:
        for job in jobs:
            print(job.key)
            results.add(record(job.task, job.arm, job.seed, 10.0))
        return []

    monkeypatch.setattr(command, "train_all", train_all)
    before = command.signal.getsignal(command.signal.SIGTERM)
    try:
        assert main(["--study", "settings", "--output_dir", str(tmp_path)]) == 0
    finally:
        command.signal.signal(command.signal.SIGTERM, before)
    lines = capsys.readouterr().out.splitlines()
    said = [place for place, line in enumerate(lines) if "likely to help?" in line]
    assert len(said) == len(SETTINGS)
    assert all("/vanilla/" in line for line in lines[1 : said[0]])
    assert all("/vanilla/" not in line for line in lines[said[-1] + 1 :])
    assert (tmp_path / "settings" / "table.md").exists()


# The run for a GPU.


def test_a_larger_model_for_a_gpu() -> None:
    task = ON_GPU[GPU_TASK]
    with torch.device("meta"):
        model = task.tiny_model()
    config: Any = model.config
    assert (config.num_layers, config.num_attention_heads * config.attention_head_dim) == (12, 384)
    assert (config.sample_size // config.patch_size) ** 2 == 64
    assert [job.arm for job in gpu_plan(GPU_STUDY.full)] == [VANILLA, PAIR]
    assert task.precision == "bf16"


@pytest.fixture
def quietly() -> Any:
    before = command.signal.getsignal(command.signal.SIGTERM)
    yield main
    command.signal.signal(command.signal.SIGTERM, before)


@pytest.mark.slow
def test_it_runs_on_a_cpu_in_its_smallest_form(tmp_path: Path, quietly: Callable[..., int]) -> None:
    assert quietly(["--scale", "gpu", "--quick", "--output_dir", str(tmp_path)]) == 0
    results = Results(tmp_path / "gpu", GPU_QUICK, gpu_plan)
    assert set(results.records) == {f"{GPU_TASK}/{VANILLA}/0", f"{GPU_TASK}/{PAIR}/0"}
    rows = (tmp_path / "gpu" / "table.md").read_text().splitlines()[2:]
    assert len(rows) == 2
    assert not (tmp_path / "depth").exists()


def test_a_study_of_the_laptop_is_none_for_a_gpu(
    tmp_path: Path, quietly: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        quietly(["--scale", "gpu", "--study", "depth", "--output_dir", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "--study depth is one of --scale laptop" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_wanting_is_told_from_the_rules_own_words() -> None:
    made = {"a gap": findings(0.0), "something to learn": findings(0.1, centred=0.99)}
    made["depth"] = findings(0.1, rises=every(0.3))
    for want, found in made.items():
        reason = found.content()["verdict"]["reason"]
        assert wanted(Call(compared=[], answer="no", reason=reason, pair=None, stop=None)) == want
