"""Trainable parts of regularizers: they join the model's optimiser and its checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

import accelerate
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from layersync_core import save_states
from layersync_core.errors import CaptureError, ConfigError
from tests.models import assert_same_gradients, build, gradients, gradients_by_autograd, states_by_hand
from tests.probe import Probe
from tests.probe import probe as probe
from tests.run.inside import Launch, attach_lora, by_hand, main_loss, sgd, train


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora outside"])
def test_trainable_parts_join_the_models_optimiser(launch: Launch, probe: list[Probe], lora: bool) -> None:
    launch()
    model, inputs = build("wan")
    if lora:
        optimiser = torch.optim.AdamW([attach_lora(model)])
    else:
        other = torch.optim.AdamW(nn.Linear(2, 2).parameters())
        optimiser = torch.optim.AdamW(model.parameters())
        assert len(other.param_groups[0]["params"]) == 2
    part = probe[0].module
    assert {id(p) for p in part.parameters()} <= {id(p) for p in optimiser.param_groups[0]["params"]}
    before = copy.deepcopy(part.state_dict())
    train(model, inputs, optimiser, 2)
    assert not torch.equal(part.weight, before["weight"])


def test_trainable_parts_are_saved_and_restored(launch: Launch, probe: list[Probe], tmp_path: Path) -> None:
    launch()
    model, inputs = build("dit")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimiser = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    train(model, inputs, optimiser, 2)
    accelerator.save_state(str(tmp_path / "checkpoint"))
    saved = copy.deepcopy(probe[0].module.state_dict())
    train(model, inputs, optimiser, 2)
    assert not torch.equal(probe[0].module.weight, saved["weight"])
    accelerator.load_state(str(tmp_path / "checkpoint"))
    assert all(torch.equal(value, saved[name]) for name, value in probe[0].module.state_dict().items())


def test_a_new_run_goes_on_with_the_trained_parts_of_the_checkpoint(
    launch: Launch, probe: list[Probe], tmp_path: Path
) -> None:
    launch()
    model, inputs = build("dit")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimiser = accelerator.prepare(model, sgd(model))
    accelerator.save_state(str(tmp_path))
    saved = {name: torch.randn_like(value) for name, value in probe[0].module.state_dict().items()}
    save_states(tmp_path, {"DiTTransformer2DModel#1": {"version": 1, "step": 4, "modules": {"probe": saved}}})
    accelerator.load_state(str(tmp_path))
    train(model, inputs, optimiser)
    assert all(torch.equal(value, saved[name]) for name, value in probe[0].module.state_dict().items())


def test_a_checkpoint_without_the_trained_parts_is_refused(launch: Launch, probe: list[Probe], tmp_path: Path) -> None:
    launch()
    model, inputs = build("dit")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimiser = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.save_state(str(tmp_path / "checkpoint"))  # before anything was trained, so that no target is known
    accelerator.load_state(str(tmp_path / "checkpoint"))
    with pytest.raises(ConfigError, match="the checkpoint has no trained part of probe for DiTTransformer2DModel#1"):
        train(model, inputs, optimiser)
    assert probe


def test_trainable_parts_that_no_optimiser_has_are_an_error(launch: Launch, probe: list[Probe]) -> None:
    launch()
    optimiser = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    model, inputs = build("dit")
    optimiser.add_param_group({"params": list(model.parameters())})
    with pytest.raises(CaptureError, match="they are not in any optimiser"):
        train(model, inputs, optimiser)
    assert probe


def test_crepa_by_a_key_of_the_batch(launch: Launch, tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    from layersync_plugin_crepa import crepa_loss

    torch.manual_seed(0)
    encoder = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28))
    encoder.eval().save_pretrained(tmp_path / "encoder")
    keys = {"crepa_enabled": True, "crepa_block_index": 1, "crepa_pixels": "pixels", "crepa_pixels_range": "0,1"}
    training = launch(**keys, crepa_model=str(tmp_path / "encoder"), crepa_encoder_image_size=28)
    model, inputs = build("wan")
    untouched = copy.deepcopy(model)
    accelerator = accelerate.Accelerator(cpu=True)
    clips = [{"pixels": torch.rand(3, 3, 28, 28), "latents": torch.randn(4, 3, 8, 8)} for _ in range(6)]
    prepared, optimiser, loader = accelerator.prepare(model, sgd(model), DataLoader(clips, batch_size=2))
    part = training.candidates.attached[0].attachment.modules()["crepa"]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for batch in loader:
        inputs["hidden_states"] = batch["latents"]
        accelerator.backward(main_loss(prepared(**inputs)))
        pixels = (batch["pixels"].flatten(0, 1) - mean[:, None, None]) / std[:, None, None]
        features = encoder(pixel_values=pixels).last_hidden_state[:, 1:].unflatten(0, (2, 3))
        state = states_by_hand(untouched, inputs)[1].unflatten(1, (3, 16))
        term = 0.5 * crepa_loss(state, features, projector=copy.deepcopy(part))[0]
        expected = gradients_by_autograd(by_hand(untouched, inputs) + term, untouched)
        optimiser.step()
        assert_same_gradients(gradients(model), expected, 1e-4)
    assert training.journal.status.terms == 3
    assert {id(p) for p in part.parameters()} <= {id(p) for g in optimiser.param_groups for p in g["params"]}
    assert "crepa block 2 of 4 (blocks.1), crepa_block_index 1" in training.journal.status.targets[0]
    assert "student block 1 of 4" in training.journal.status.targets[0]


def test_crepa_without_pixels_is_refused_when_the_optimiser_is_made(launch: Launch) -> None:
    launch(crepa_enabled=True, crepa_block_index=1)
    model, _ = build("wan")
    with pytest.raises(ConfigError, match="crepa_pixels is missing"):
        sgd(model)
