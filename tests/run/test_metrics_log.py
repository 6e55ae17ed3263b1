"""The metrics go where the program logs, else to a file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from layersync_core.run.training import Training
from tests.curves import read_curves
from tests.models import build
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


def rows_at_the_end(training: Training, folder: Path) -> list[dict[str, Any]]:
    training.journal._finish()
    return [json.loads(line) for line in (folder / "layersync_metrics.jsonl").read_text().splitlines()]


def test_a_script_that_logs_nowhere_gets_a_file(launch: Launch, tmp_path: Path) -> None:
    training = launch()
    model, inputs = build("dit")
    train(model, inputs, sgd(model), 60)
    rows = rows_at_the_end(training, tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert all(row["layersync_loss"] == pytest.approx(-WEIGHT * row["layersync_similarity"]) for row in rows)
    assert "layersync_metrics.jsonl" in training.journal.status.tracker


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
