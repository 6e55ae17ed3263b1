"""LayerSync's part of a checkpoint: where the schedule goes on."""

from __future__ import annotations

import copy
from pathlib import Path

import accelerate
import pytest

from layersync_core import __version__, load_states, save_states
from layersync_core.errors import ConfigError
from tests.models import assert_same_gradients, build, gradients, gradients_by_autograd
from tests.run.inside import Launch, by_hand, main_loss, sgd, train


def test_the_schedule_goes_on_from_accelerates_checkpoint(launch: Launch, tmp_path: Path) -> None:
    training = launch(layersync_warmup_steps=10)
    model, inputs = build("dit")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimiser = accelerator.prepare(model, sgd(model))
    train(model, inputs, optimiser, 3)
    accelerator.save_state(str(tmp_path / "checkpoint"))
    train(model, inputs, optimiser, 2)
    assert training.steps.now == 5
    accelerator.load_state(str(tmp_path / "checkpoint"))
    assert training.steps.now == 3


def test_a_new_run_goes_on_where_the_checkpoint_says(launch: Launch, tmp_path: Path) -> None:
    training = launch(layersync_warmup_steps=10)
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimiser = accelerator.prepare(model, sgd(model))
    accelerator.save_state(str(tmp_path))
    save_states(tmp_path, {"DiTTransformer2DModel#1": {"version": 1, "step": 4, "modules": {}}})
    accelerator.load_state(str(tmp_path))
    term = by_hand(untouched, inputs) - main_loss(untouched(**inputs))
    expected = gradients_by_autograd(main_loss(untouched(**inputs)) + 0.4 * term, untouched)
    train(model, inputs, optimiser)
    assert_same_gradients(gradients(model), expected)
    assert training.steps.now == 5


def test_a_checkpoint_without_our_state(launch: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = launch()
    model, _ = build("dit")
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.prepare(model, sgd(model))
    folder = tmp_path / "checkpoint"
    accelerator.save_state(str(folder))
    (folder / "layersync_state.safetensors").unlink()
    accelerator.load_state(str(folder))
    assert "the checkpoint has no layersync_state.safetensors" in capsys.readouterr().err
    assert training.steps.now == 0


def test_a_schedule_without_our_state_is_an_error_unless_the_step_is_given(launch: Launch, tmp_path: Path) -> None:
    launch(layersync_warmup_steps=10)
    accelerator = accelerate.Accelerator(cpu=True)
    folder = tmp_path / "checkpoint"
    accelerator.save_state(str(folder))
    (folder / "layersync_state.safetensors").unlink()
    with pytest.raises(ConfigError, match="--layersync_start_step N"):
        accelerator.load_state(str(folder))


def test_a_given_start_step_stands_where_the_checkpoint_tells_nothing(launch: Launch, tmp_path: Path) -> None:
    training = launch(layersync_warmup_steps=10, layersync_start_step=4)
    accelerator = accelerate.Accelerator(cpu=True)
    folder = tmp_path / "checkpoint"
    accelerator.save_state(str(folder))
    (folder / "layersync_state.safetensors").unlink()
    accelerator.load_state(str(folder))
    assert training.steps.now == 4


@pytest.mark.parametrize("content", [b"", b"no safetensors"])
def test_a_damaged_state_is_refused(launch: Launch, tmp_path: Path, content: bytes) -> None:
    launch()
    accelerator = accelerate.Accelerator(cpu=True)
    folder = tmp_path / "checkpoint"
    accelerator.save_state(str(folder))
    (folder / "layersync_state.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"layersync_state\.safetensors cannot be read"):
        accelerator.load_state(str(folder))


def test_a_checkpoint_says_whose_code_wrote_it_and_another_version_is_told(
    launch: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch()
    model, inputs = build("dit")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimiser = accelerator.prepare(model, sgd(model))
    train(model, inputs, optimiser)
    accelerator.save_state(str(tmp_path))
    states = load_states(tmp_path)
    assert states is not None
    ((name, state),) = states.items()
    assert [record["name"] for record in state["distributions"]] == ["layersync-core", "layersync-adapter-dit"]
    accelerator.load_state(str(tmp_path))
    assert "written with" not in capsys.readouterr().err
    core, adapter = state["distributions"]
    save_states(tmp_path, {name: {**state, "distributions": [core, {**adapter, "version": "0.0.1"}]}})
    accelerator.load_state(str(tmp_path))
    told = [line for line in capsys.readouterr().err.splitlines() if "written with" in line]
    assert told == [f"layersync: the checkpoint was written with layersync-adapter-dit 0.0.1 (now {__version__})"]
