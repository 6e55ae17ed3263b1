"""The metrics go where the program logs, else to a file."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from layersync_core import attach
from layersync_core.run.metrics_log import MetricsLog, with_metrics
from layersync_core.run.training import Training
from tests.curves import read_curves
from tests.models import build, settings
from tests.run.inside import WEIGHT, Launch, main_loss, sgd, train
from tests.run.processes import RUN, Script, python, run


def test_accelerates_trackers_get_the_metrics(launch: Launch, tmp_path: Path) -> None:
    launch()
    model, inputs = build("dit")
    accelerator = accelerate.Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path / "logs"))
    accelerator.init_trackers("run")
    model, optimiser = accelerator.prepare(model, sgd(model))
    for step in range(3):
        train(model, inputs, optimiser)
        accelerator.log({"loss": 1.0}, step=step)
    accelerator.end_training()
    scalars = read_curves(tmp_path / "logs")
    assert {"loss", "layersync_loss", "layersync_similarity"} <= scalars.keys()
    assert [step for step, _ in scalars["layersync_similarity"]] == [0, 1, 2]
    for (_, loss), (_, similarity) in zip(scalars["layersync_loss"], scalars["layersync_similarity"], strict=True):
        assert loss == pytest.approx(-WEIGHT * similarity, rel=1e-5)
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_scripts_own_writer_gets_the_metrics(launch: Launch, tmp_path: Path) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    with SummaryWriter(str(tmp_path / "logs")) as writer:
        for step in range(3):
            train(model, inputs, optimiser)
            writer.add_scalar("loss", 1.0, step)
            writer.add_scalar("more", 1.0, step)
    scalars = read_curves(tmp_path / "logs")
    assert [step for step, _ in scalars["layersync_loss"]] == [0, 1, 2]


def test_wandb_gets_the_metrics(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, Any]] = []

    class Run:
        def log(self, data: dict[str, Any], step: int | None = None) -> None:
            logged.append(data)

    wandb = type(nn)("wandb")
    wandb.run = Run()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    launch()
    model, inputs = build("dit")
    train(model, inputs, sgd(model))
    wandb.run.log({"loss": 1.0}, step=0)
    wandb.run.log({"other": 1.0}, step=0)
    assert logged[0].keys() == {"loss", "layersync_loss", "layersync_similarity"}
    assert logged[1] == {"other": 1.0}


def figures(log: MetricsLog, *values: float) -> None:
    for value in values:
        log.add({"layersync_similarity": torch.tensor(value)})


def test_a_program_that_logs_gets_the_mean_of_the_steps_since_it_did(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path))
    assert not log.waiting
    figures(log, 1, 2)  # micro-batches of a step
    log.step()
    figures(log, 3)
    log.step()
    assert log.waiting
    assert log.take("wandb") == {"layersync_similarity": (1.5 + 3) / 2}
    assert (log.take("wandb"), log.where) == ({}, "logged to wandb")
    figures(log, 4)
    assert with_metrics(log, "no mapping", "wandb") == "no mapping"
    assert with_metrics(log, {"loss": 1}, "wandb") == {"layersync_similarity": 4, "loss": 1}
    assert with_metrics(log, {"loss": 2}, "wandb") == {"loss": 2}
    figures(log, 5)
    log.close()
    assert not list(tmp_path.iterdir()), "the program logs"


def test_the_first_figure_and_the_last_are_kept() -> None:
    log = MetricsLog(None)
    assert (log.first.peek(), log.last.peek()) == (None, None)
    for value in (1.0, 2.0, 3.0):
        figures(log, value)
        log.step()
        assert (log.first.peek(), log.last.peek()) == (1, value)
    log.add({"other": torch.tensor(9.0)})
    log.close()
    assert (log.first.wait(), log.last.wait()) == (1, 3)


@pytest.mark.parametrize(("rank", "files"), [("0", ["layersync_metrics.jsonl"]), ("1", [])])
def test_one_rank_writes_the_file(rank: str, files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    log = MetricsLog(str(tmp_path))
    figures(log, 1)
    log.step()
    log.step()  # without a figure
    figures(log, 2, 4)
    log.step()
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == files
    for path in tmp_path.iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        times = [row.pop("time") for row in rows]
        assert times == sorted(times)
        assert abs(times[0] - time.time()) < 60
        assert rows == [{"step": 1, "layersync_similarity": 1}, {"step": 3, "layersync_similarity": 3}]


def test_a_file_that_cannot_be_written_is_told_of(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path / "missing"))
    figures(log, 1)
    log.step()
    log.close()
    assert log.where == "metrics could not be written: No such file or directory"


def rows_at_the_end(training: Training, folder: Path) -> list[dict[str, Any]]:
    training.journal.finish()
    return [json.loads(line) for line in (folder / "layersync_metrics.jsonl").read_text().splitlines()]


def test_a_script_that_logs_nowhere_gets_a_file(launch: Launch, tmp_path: Path) -> None:
    training = launch()
    model, inputs = build("dit")
    train(model, inputs, sgd(model), 60)
    rows = rows_at_the_end(training, tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert all(row["layersync_loss"] == pytest.approx(-WEIGHT * row["layersync_similarity"]) for row in rows)
    assert "layersync_metrics.jsonl" in training.journal.status.tracker


@pytest.mark.parametrize("holds", [False, True])
def test_a_program_without_an_optimisers_step_has_metrics_to_log(launch: Launch, holds: bool) -> None:
    """An optimiser of which only its own method for one parameter is called, in backward, holds weights as well."""
    training = launch()
    model, inputs = build("dit")
    optimiser = sgd(model) if holds else None
    for _ in range(2):
        main_loss(model(**inputs)).backward()
        assert training.journal.log.take("its logger").keys() == {"layersync_loss", "layersync_similarity"}
    del optimiser


def test_a_row_is_a_step_with_a_term(launch: Launch, tmp_path: Path) -> None:
    training = launch()
    model, inputs = build("dit")
    discriminator = nn.Linear(2, 1)
    optimiser, others = sgd(model), torch.optim.SGD(discriminator.parameters(), lr=0)
    for _ in range(2):
        train(model, inputs, optimiser)
        others.step()
        optimiser.step()  # without a loss
    assert [row["step"] for row in rows_at_the_end(training, tmp_path)] == [1, 2]


def test_a_row_is_a_backward_that_steps_for_each_parameter(launch: Launch, tmp_path: Path) -> None:
    training = launch()
    model, inputs = build("dit")
    for parameter in model.parameters():
        own = torch.optim.SGD([parameter], lr=0)
        parameter.register_post_accumulate_grad_hook(lambda _, own=own: own.step())
    for _ in range(2):
        main_loss(model(**inputs)).backward()
    assert [row["step"] for row in rows_at_the_end(training, tmp_path)] == [1, 2]


def ratios(count: int) -> list[float]:
    """Return the measured ratio of each of some losses of a model, whose loss grows, where the program says step()."""
    model, inputs = build("dit")
    found = []
    with attach(model, settings(1, 3, layersync_log_grad_ratio=True)) as sync:
        for number in range(count):
            sync.apply((number + 1) * main_loss(model(**inputs))).backward()
            found.append(float(sync.metrics()["layersync_grad_ratio"]))
    assert len(set(found)) == count
    return found


def test_the_ratio_of_a_loss_is_logged_with_it_without_an_optimiser(launch: Launch) -> None:
    expected = ratios(3)
    training = launch(layersync_log_grad_ratio=True, layersync_accumulation_steps=1)
    model, inputs = build("dit")
    found = []
    for number in range(3):
        ((number + 1) * main_loss(model(**inputs))).backward()
        assert training.journal.log.waiting
        metrics = training.journal.log.take("its logger")
        assert {"layersync_loss", "layersync_similarity", "layersync_grad_ratio"} <= set(metrics)
        found.append(metrics["layersync_grad_ratio"])
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_ratio_of_a_loss_is_in_its_row_where_parameters_step_in_backward(launch: Launch, tmp_path: Path) -> None:
    expected = ratios(3)
    training = launch(layersync_log_grad_ratio=True, layersync_accumulation_steps=1)
    model, inputs = build("dit")
    for parameter in model.parameters():
        own = torch.optim.SGD([parameter], lr=0)
        parameter.register_post_accumulate_grad_hook(lambda _, own=own: own.step())
    for number in range(3):
        ((number + 1) * main_loss(model(**inputs))).backward()
    rows = rows_at_the_end(training, tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["layersync_grad_ratio"] for row in rows] == pytest.approx(expected, rel=1e-4)


LATE_WRITER = """
import sys
import tiny_dit
model = tiny_dit.build()
tiny_dit.train(model)
from torch.utils.tensorboard import SummaryWriter
with SummaryWriter(sys.argv[1]) as writer:
    writer.add_scalar("loss", 1.0, 1)
"""


@pytest.mark.slow
def test_a_writer_that_is_imported_after_the_first_step_gets_its_metrics(script: Script, tmp_path: Path) -> None:
    run([*RUN, *python(script(LATE_WRITER), str(tmp_path))])
    assert [step for step, _ in read_curves(tmp_path)["layersync_loss"]] == [1]
