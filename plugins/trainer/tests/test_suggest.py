"""`layersync suggest MODEL`: what it writes and says about different models."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DiTTransformer2DModel
from safetensors.torch import save_file

from layersync_core import CaptureError, ConfigError
from layersync_core.testing import randomise_weights, scatter_weights
from layersync_plugin_trainer.suggest import suggest
from layersync_plugin_trainer.train import train


def model(path, change=lambda model: None, heads=2, depth=10, channels=1):
    torch.manual_seed(0)
    made = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=16,
        in_channels=channels,
        out_channels=channels,
        num_layers=depth,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    change(made)
    made.save_pretrained(path)
    return str(path)


def without_effect(model, which=slice(None)):
    """Close the gates of blocks, so that each returns its input."""
    with torch.no_grad():
        for block in model.transformer_blocks[which]:
            for parameter in block.norm1.linear.parameters():
                parameter.zero_()


def run(tmp_path, name, **settings):
    few = {} if "data" in settings else {"batches": 4}
    suggest({"output_dir": str(tmp_path / "out"), **few, **settings}, name, None)
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
    made = model(tmp_path / "random", randomise_weights)
    content = run(tmp_path, made, batches=16)
    assert content["verdict"]["answer"] == "no"
    assert content["recommended"] == []
    assert len(content["gap"]) == len(content["noise_levels"]) == 3
    few = run(tmp_path, made, batches=1)
    assert few["verdict"]["answer"] == "unknown"
    assert "too few samples" in few["verdict"]["reason"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A DiT that the trainer has trained for a while, without LayerSync."""
    folder = tmp_path_factory.mktemp("trained")
    name = model(folder / "start", heads=4, depth=6)
    settings = {"max_train_steps": 300, "train_batch_size": 64, "learning_rate": 0.004, "num_sampling_steps": 1}
    warm = {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 20, "checkpointing_steps": 300}
    train({"model": name, "layersync_enabled": False, "output_dir": str(folder / "out"), **settings, **warm})
    return folder / "out" / "model"


@pytest.mark.slow
def test_a_trained_model_has_better_teachers_but_no_depth_to_spare(tmp_path, capsys, monkeypatch, trained):
    monkeypatch.setattr("layersync_plugin_trainer.suggest._BATCHES_OF_LOSS", 1)  # as many as the other flag's
    content = run(tmp_path, str(trained), batches=90, noise_levels=(0.5,))
    assert content["gap"][0][1][3] > 0.05
    (run_between,) = [run for run in content["between"] if run["first"] == 3 and run["last"] == 4]
    assert run_between["rise"] > 0.1 * content["loss"]
    assert content["gap"][0][1][3] > 2 * content["gap_error"][0][1][3] > 0
    # The same two blocks left out by the other flag, which measures on the same samples.
    skipped = run(tmp_path, str(trained), batches=90, noise_levels=(0.5,), skip=50)["skip_runs"]
    assert run_between["rise"] == pytest.approx(
        next(found["rise"] for found in skipped if (found["first"], found["last"]) == (3, 4)), abs=1e-5
    )
    assert content["verdict"]["answer"] == "no"
    assert "a linear probe by +0." in content["verdict"]["reason"]
    assert "no depth to spare" in content["verdict"]["reason"]
    printed = capsys.readouterr().out
    assert "does it favour LayerSync? no: deeper blocks separate the classes" in printed
    assert "fed with embedded samples" in printed


@pytest.mark.slow
def test_a_teacher_equal_to_its_student_is_none(tmp_path, trained):
    equal = DiTTransformer2DModel.from_pretrained(trained)
    without_effect(equal, slice(2, 4))
    equal.save_pretrained(tmp_path / "equal")
    content = run(tmp_path, str(tmp_path / "equal"), batches=90, noise_levels=(0.5,))
    assert content["centered_cosine"][0][1][3] == pytest.approx(1, abs=1e-6)
    assert content["recommended"] == []
    assert content["verdict"]["answer"] == "no"
    assert "saturated already, with a centred cosine of 1.000" in content["verdict"]["reason"]


def test_labels_that_the_model_gets_are_refused(tmp_path):
    labels = torch.tensor([1, 2, 3, 4])
    arguments = {"hidden_states": torch.randn(4, 1, 8, 8), "timestep": torch.full((4,), 500)}
    save_file({**arguments, "class_labels": labels.clone(), "labels": labels}, tmp_path / "told.safetensors")
    with pytest.raises(ConfigError, match="class_labels tells the model the labels"):
        run(tmp_path, model(tmp_path / "model", randomise_weights), data=str(tmp_path / "told.safetensors"))
    save_file({**arguments, "class_labels": torch.full((4,), 10), "labels": labels}, tmp_path / "null.safetensors")
    content = run(tmp_path, str(tmp_path / "model"), data=str(tmp_path / "null.safetensors"))
    assert content["samples"] == 4
    assert content["fed"] == ""
    save_file({**arguments, "labels": labels[:3].clone()}, tmp_path / "null.safetensors")
    with pytest.raises(ConfigError, match=r"labels has shape \(3,\)"):
        run(tmp_path, str(tmp_path / "model"), data=str(tmp_path / "null.safetensors"))


@pytest.mark.parametrize(
    ("labels", "told", "said"),
    [
        (torch.tensor([1, -1, 3, 4]), 10, "labels has -1; leave out the samples whose class is not known"),
        (torch.tensor([True, False, True, True]), 10, "type torch.bool; expected one whole number"),
        (torch.tensor([1, 2, 3, 4]), 11, "does not fit the forward of DiTTransformer2DModel: IndexError"),
    ],
)
def test_labels_that_cannot_be(tmp_path, labels, told, said):
    arguments = {"hidden_states": torch.randn(4, 1, 8, 8), "timestep": torch.full((4,), 500)}
    arguments |= {"class_labels": torch.full((4,), told), "labels": labels}
    save_file(arguments, tmp_path / "batch.safetensors")
    with pytest.raises(ConfigError, match=said) as error:
        run(tmp_path, model(tmp_path / "model", randomise_weights), data=str(tmp_path / "batch.safetensors"))
    assert "\n" not in str(error.value)


def test_large_numbers_of_classes_take_no_memory(tmp_path):
    arguments = {"hidden_states": torch.randn(4, 1, 8, 8), "timestep": torch.full((4,), 500)}
    arguments |= {"class_labels": torch.full((4,), 10), "labels": torch.tensor([10**12, 1, 1, 10**12])}
    save_file(arguments, tmp_path / "batch.safetensors")
    content = run(tmp_path, model(tmp_path / "model", randomise_weights), data=str(tmp_path / "batch.safetensors"))
    assert content["chance"] == 0.5


def test_no_sample_is_measured_twice(tmp_path):
    content = run(tmp_path, model(tmp_path / "model", randomise_weights), batches=200, noise_levels=(0.5,))
    assert content["samples"] <= 1024
    assert content["forwards"] <= 102, "the 1618 digits to train on, and no second pass"
    with pytest.raises(ConfigError, match=r"noise_levels .*give each level once"):
        run(tmp_path, "dit", noise_levels="0.5,0.5")


def test_weights_of_fewer_blocks_than_the_config(tmp_path):
    made = model(tmp_path / "short", depth=4)
    config = tmp_path / "short" / "config.json"
    config.write_text(config.read_text().replace('"num_layers": 4', '"num_layers": 6'))
    with pytest.raises(ConfigError, match=r"are not those of its config: \d+ are missing, such as"):
        run(tmp_path, made)


def test_for_a_model_of_other_channels_the_error_says_what_works(tmp_path):
    made = model(tmp_path / "model", channels=4)
    with pytest.raises(ConfigError, match=r"cannot be fed .*; or give --data .* layersync run --layersync_suggest N"):
        run(tmp_path, made)


def test_a_tiny_model_says_that_it_is_one(tmp_path):
    assert "tiny model with random weights" in run(tmp_path, "dit", batches=1)["fed"]


def test_data_of_ones_own_has_no_verdict_without_classes(tmp_path):
    name = model(tmp_path / "model", randomise_weights)
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
    with pytest.raises(ConfigError, match=r"^batches and noise_levels would do nothing: the files of data hold"):
        run(tmp_path, name, data=str(folder), noise_levels="0.5", batches=4)
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
    # Leaving out a block that is the identity costs nothing.
    content = run(tmp_path, model(tmp_path / "shut", without_effect), skip=100)
    assert max(map(abs, content["skip"][1:])) < 1e-6


def test_a_config_without_weights_gives_the_papers_rule(tmp_path):
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
