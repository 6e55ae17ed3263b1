"""`layersync suggest MODEL`: what it writes and says of models that differ."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import save_file

from layersync_core import CaptureError, ConfigError
from layersync_core.testing import lively, scatter_weights
from layersync_plugin_trainer.suggest import suggest


def model(path, change=lambda model: None):
    torch.manual_seed(0)
    made = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=1,
        out_channels=1,
        num_layers=10,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    change(made)
    made.save_pretrained(path)
    return str(path)


def without_effect(model):
    """Close the gates of every block, so that each returns what it was given."""
    with torch.no_grad():
        for block in model.transformer_blocks:
            for parameter in block.norm1.linear.parameters():
                parameter.zero_()


def run(tmp_path, name, **settings):
    suggest({"output_dir": str(tmp_path / "out"), "batches": 4, **settings}, name, None)
    return json.loads((tmp_path / "out" / "suggest.json").read_text())


def test_blocks_that_change_nothing_speak_for_no_pair(tmp_path, capsys):
    content = run(tmp_path, model(tmp_path / "shut", without_effect))
    assert content["recommended"] == []
    assert content["verdict"]["answer"] == "no"
    assert "saturated already" in content["verdict"]["reason"]
    printed = capsys.readouterr().out
    assert "recommended: none" in printed
    assert "suggest.json, suggest.html, suggest.png" in printed


def test_random_blocks_are_no_better_teachers(tmp_path):
    content = run(tmp_path, model(tmp_path / "random", lively))
    assert content["verdict"]["answer"] == "no"
    assert content["recommended"] == []
    assert len(content["gap"]) == len(content["noise_levels"]) == 3


def test_data_of_ones_own_has_no_verdict_without_classes(tmp_path):
    name = model(tmp_path / "model", lively)
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        arguments = {
            "hidden_states": torch.randn(4, 1, 8, 8),
            "timestep": torch.tensor([100, 200, 800, 900]),
            "class_labels": torch.tensor([1, 2, 3, 4]),
        }
        save_file(arguments, folder / f"{number}.safetensors")
    content = run(tmp_path, name, data=str(folder), tokens=1000)
    assert content["noise_levels"] == [0.125, 0.875]
    assert content["forwards"] == 3
    assert content["verdict"]["answer"] in ("unknown", "no")
    assert content["gap"] == []
    with pytest.raises(ConfigError, match="skip needs a loss"):
        run(tmp_path, name, data=str(folder), skip=9)
    save_file({"wrong": torch.ones(2)}, folder / "3.safetensors")
    with pytest.raises(ConfigError, match="does not fit the forward"):
        run(tmp_path, name, data=str(folder))


def test_leaving_blocks_out(tmp_path):
    content = run(tmp_path, model(tmp_path / "scattered", scatter_weights), skip=100)
    skip = content["skip"]
    assert skip[0] is None
    assert all(rise is not None for rise in skip[1:])
    assert len({round(rise, 6) for rise in skip[1:]}) > 1
    assert content["skip_runs"][0]["first"] == 2
    assert content["skip_runs"][0]["last"] == 3
    # A block that is the identity can be left out for nothing.
    content = run(tmp_path, model(tmp_path / "shut", without_effect), skip=100)
    assert max(map(abs, content["skip"][1:])) < 1e-6


def test_a_config_alone_gives_the_papers_rule(tmp_path):
    (tmp_path / "only").mkdir()
    name = model(tmp_path / "whole")
    (tmp_path / "only" / "config.json").write_text((tmp_path / "whole" / "config.json").read_text())
    content = run(tmp_path, str(tmp_path / "only" / "config.json"))
    assert content["cka"] == []
    assert content["verdict"]["answer"] == "unknown"
    assert [(pair["student"], pair["teacher"]) for pair in content["recommended"]] == [(3, 6)]
    assert name


def test_settings_that_cannot_work(tmp_path):
    with pytest.raises(ConfigError, match="noise_levels"):
        run(tmp_path, "dit", noise_levels="2")
    with pytest.raises(ConfigError, match="batches"):
        run(tmp_path, "dit", batches="many")
    with pytest.raises(ConfigError, match="skip is 5, but leaving out one block takes 6 forwards"):
        run(tmp_path, "dit", skip=5)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"output_dir .*file cannot be made"):
        run(tmp_path, "dit", output_dir=str(tmp_path / "file"))


def test_weights_that_are_not_finite(tmp_path):
    def broken(model):
        with torch.no_grad():
            model.transformer_blocks[4].ff.net[2].bias.fill_(torch.nan)

    with pytest.raises(CaptureError, match=r"block 5 of 10 \(transformer_blocks.4\) .*not finite"):
        run(tmp_path, model(tmp_path / "broken", broken))
