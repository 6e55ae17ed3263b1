"""A run with both regularizers on the moving shapes: metrics of both, checkpoints with the projector, resuming."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CREPA = {
    "family": "wan",
    "crepa_enabled": "true",
    "crepa_block_index": 0,
    "crepa_teacher_block_index": 2,
    "crepa_feature_source": "backbone",
    "crepa_scheduler": "linear",
    "learning_rate": 0.01,
    "logging_steps": 1,
}
STATE = "layersync_state.safetensors"


def scalars(folder):
    events = EventAccumulator(str(folder / "logs" / "layersync"))
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_both_log_and_the_resumed_run_continues_bit_for_bit(train):
    whole = train(folder="whole", max_train_steps=4, checkpointing_steps=2, report_to="tensorboard", **CREPA)
    assert whole.code == 0, whole.err
    assert "crepa: block 1 of 4 (blocks.0), crepa_block_index 0" in whole.out
    logged = scalars(whole.folder)
    assert {"layersync_loss", "layersync_similarity", "crepa_loss", "crepa_alignment_score"} <= set(logged)
    assert {"crepa_similarity_self", "crepa_weight", "crepa_cutoff"} <= set(logged)
    assert logged["crepa_weight"] == pytest.approx([0.5, 0.375, 0.25, 0.125])  # to the run's last step
    for loss, weight, score in zip(
        logged["crepa_loss"], logged["crepa_weight"], logged["crepa_alignment_score"], strict=True
    ):
        assert loss == pytest.approx(-weight * score, rel=1e-4)

    middle, end = (load_file(whole.folder / f"checkpoint-{step}" / STATE) for step in (2, 4))
    assert "crepa/linear.weight" in end
    assert not torch.equal(middle["crepa/linear.weight"], end["crepa/linear.weight"]), "the projector is trained"
    again = train(output_dir=whole.folder.with_name("again"), resume_from_checkpoint=whole.folder / "checkpoint-2")
    assert again.code == 0, again.err
    resumed = load_file(again.folder / "checkpoint-4" / STATE)
    assert resumed.keys() == end.keys()
    assert all(torch.equal(resumed[name], end[name]) for name in end)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"crepa_enabled": "false"}, "the state has trainable parts ['crepa'], this attachment has []"),
        ({**CREPA, "crepa_teacher_block_index": 3}, ""),
    ],
)
def test_what_a_resumed_run_has_must_be_in_the_checkpoint(train, settings, said):
    first = train(folder="first", max_train_steps=1, **CREPA)
    assert first.code == 0, first.err
    given = {key: value for key, value in settings.items() if key.startswith("crepa_")}
    again = train(output_dir=first.folder, resume_from_checkpoint="latest", max_train_steps=2, **given)
    assert again.code == (2 if said else 0), again.err
    assert said in again.err


def test_mistakes_are_reported_at_the_start(train):
    for more, said in (
        ({"crepa_blok_index": 1}, "No such option: --crepa_blok_index"),
        ({"crepa_block_index": 4}, "crepa_block_index is 4, but the model has 4 blocks"),
        ({"crepa_feature_source": "encoder", "crepa_teacher_block_index": None}, "crepa_pixels is missing"),
    ):
        result = train(folder="mistake", **CREPA | more)
        assert result.code == 2
        assert said in " ".join(result.err.split())
        assert not result.folder.exists()


def test_an_encoder_sees_pixels_from_a_function(train, tmp_path, monkeypatch):
    from transformers import Dinov2Config, Dinov2Model

    from layersync_plugin_crepa import pixels

    monkeypatch.setattr(pixels, "_latest", pixels._MISSING)  # other tests of this process had loaders
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28)
    Dinov2Model(config).save_pretrained(tmp_path / "encoder")
    (tmp_path / "clips_of_a_test.py").write_text(
        "import torch\ndef clips(batch):\n    assert batch is None\n    return torch.rand(4, 5, 3, 32, 32) * 2 - 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    encoder = {"crepa_feature_source": "encoder", "crepa_teacher_block_index": None}
    encoder |= {"crepa_model": tmp_path / "encoder", "crepa_encoder_image_size": 28}
    result = train(max_train_steps=1, **CREPA | encoder, crepa_pixels="clips_of_a_test:clips")
    assert result.code == 0, result.err
    assert "pixels from clips_of_a_test:clips" in result.out
    assert "crepa_loss" in json.loads((result.folder / "run.json").read_text())["metrics"]
