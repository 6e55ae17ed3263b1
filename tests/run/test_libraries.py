"""The libraries that train with torch: each divides, steps and logs in its own way, or is refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor

from layersync_core.errors import CaptureError
from layersync_core.run import patches
from layersync_core.run.startup.sitecustomize import WATCHED
from tests.curves import read_curves
from tests.models import assert_same_gradients, build, gradients, gradients_by_autograd
from tests.run.inside import Launch, by_hand, library, main_loss, micro_batches, sgd
from tests.run.processes import RUN, SCRIPTS, SUMMARY, python, run


def test_grad_scaler(launch: Launch) -> None:
    launch()
    model, batches, expected = micro_batches()
    optimiser, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=512.0)
    for inputs in batches:
        scaler.scale(main_loss(model(**inputs)) / 4).backward()
    scaler.unscale_(optimiser)
    scaler.step(optimiser)
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("enabled", [True, False])
def test_a_loss_of_something_else_that_is_scaled_is_one_loss(launch: Launch, enabled: bool) -> None:
    launch()
    model, inputs = build("dit")
    expected = gradients_by_autograd(by_hand(untouched := copy.deepcopy(model), inputs), untouched)
    optimiser, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=512.0, enabled=enabled)
    scaler.scale(torch.ones(3, requires_grad=True).sum()).backward()
    (loss,) = scaler.scale([main_loss(model(**inputs))])
    loss.backward()
    scaler.unscale_(optimiser)
    scaler.step(optimiser)
    assert_same_gradients(gradients(model), expected)


def test_more_gradients_than_losses_are_left_to_torch(launch: Launch) -> None:
    found = []
    for switched_on in (False, True):
        if switched_on:
            launch()
        weight = torch.ones(3, requires_grad=True)
        torch.autograd.backward([weight.sum()], [torch.tensor(2.0), torch.tensor(5.0)])
        found.append(weight.grad)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("divides", ["accelerate", "script"])
def test_accelerate(launch: Launch, divides: str, capsys: pytest.CaptureFixture[str]) -> None:
    training = launch()
    model, batches, expected = micro_batches()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4 if divides == "accelerate" else 1)
    prepared, optimiser = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0))
    for number, inputs in enumerate(batches):
        with accelerator.accumulate(prepared):
            loss = main_loss(prepared(**inputs))
            accelerator.backward(loss if divides == "accelerate" else loss / 4)
            if divides == "accelerate" or number == 3:
                optimiser.step()
    assert_same_gradients(gradients(model), expected)
    assert (training.journal.status.terms, training.journal.status.steps) == (4, 1)
    said = {"accelerate": "4 (divided by accelerate)", "script": "read from the loss: 1/4"}
    assert f", gradient accumulation {said[divides]}\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["lightning", "lightning_fabric"])
def test_fabric(launch: Launch, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    class Fabric:
        def backward(self, tensor: Tensor, *args: Any, model: Any = None) -> None:
            tensor.backward(*args)

    library(monkeypatch, name, Fabric=Fabric)
    library(monkeypatch, "lightning.fabric" if name == "lightning" else name, Fabric=Fabric)
    launch()
    patches.install(name)
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    Fabric().backward(main_loss(model(**inputs)))
    optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))


def test_megatron_is_refused_by_name(launch: Launch) -> None:
    launch()
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.state.distributed_type = accelerate.DistributedType.MEGATRON_LM
    with pytest.raises(CaptureError, match="Megatron-LM"):
        accelerator.backward(torch.ones((), requires_grad=True) * 2)


@pytest.mark.slow
def test_lightnings_own_loop_is_trained_and_logged(tmp_path: Path) -> None:
    done = run([*RUN, *python(str(SCRIPTS / "train_with_lightning.py"), str(tmp_path))], cwd=tmp_path)
    assert "accumulation read from the loss: 1/2" in done.stderr
    assert f"3 steps {SUMMARY}" in done.stderr
    assert "logged to tensorboard" in done.stderr
    curves = read_curves(tmp_path)
    assert {"loss", "layersync_loss", "layersync_similarity"} <= curves.keys()
    assert len(curves["layersync_similarity"]) == 3
    assert [loss for _, loss in curves["layersync_loss"]] == pytest.approx(
        [-0.5 * value for _, value in curves["layersync_similarity"]]
    )


def test_the_start_up_hook_watches_what_the_libraries_ask_for() -> None:
    asked = [name for library in patches.LIBRARIES for name in library.WATCHES]
    assert len(asked) == len(set(asked))
    assert set(asked) == WATCHED
    assert {*patches._TAKES_HOLD} == WATCHED
