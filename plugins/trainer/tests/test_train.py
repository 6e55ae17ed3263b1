from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from importlib.metadata import version
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from layersync_core.cli import main

PAIR = {"layersync_enabled": "true", "layersync_student_block": 2, "layersync_teacher_block": 5}
WEIGHTS = "model/diffusion_pytorch_model.safetensors"


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / "logs" / "layersync"))
    accumulator.Reload()
    return {
        name: [(event.step, event.value) for event in accumulator.Scalars(name)]
        for name in accumulator.Tags()["scalars"]
    }


def is_png(file):
    return file.read_bytes().startswith(b"\x89PNG") and file.stat().st_size > 5000


def same(one, other):
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_everything(train, capsys):
    result = train(max_train_steps=4, logging_steps=2, checkpointing_steps=2, report_to="tensorboard", seed=3)
    assert result.code == 0, result.err
    folder = result.folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint-2",
        "checkpoint-4",
        "curves.png",
        "layersync.log",
        "layersync_process.json",
        "logs",
        "model",
        "report.html",
        "run.json",
        "samples.png",
    ]
    assert is_png(folder / "samples.png")
    assert is_png(folder / "curves.png")
    run = json.loads((folder / "run.json").read_text())
    assert run["blocks"] == [
        {"student": "block 2 of 8 (transformer_blocks.1)", "teacher": "block 5 of 8 (transformer_blocks.4)"}
    ]
    assert run["adapter"]["distribution"] == "layersync-adapter-dit"
    assert run["versions"]["torch"] == version("torch")
    assert (run["seed"], run["steps"], run["config"]["layersync_enabled"]) == (3, 4, True)
    page = (folder / "report.html").read_text()
    for said in ("Finished", "step 4 of 4", "block 2 of 8", "block 5 of 8", f"last {run['metrics']['loss']:.4g}"):
        assert said in page
    command = html.unescape(re.search("<pre>(.*)</pre>", page)[1])
    assert command.startswith("layersync train --max_train_steps 4")
    # Its settings are understood: it is refused only because the folder has a run already.
    assert main([*shlex.split(command)[1:], "--output_dir", str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert page.count("<polyline") == 3  # loss, layersync_loss, layersync_similarity
    assert page.count('src="data:image/png;base64,') == 1
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert {"loss", "layersync_loss", "layersync_similarity"} <= set(run["metrics"])
    logged = events(folder)
    assert set(logged) == {"loss", "layersync_loss", "layersync_similarity", "lr"}
    assert [step for step, _ in logged["loss"]] == [2, 4]
    assert logged["loss"][-1][1] == pytest.approx(run["metrics"]["loss"])
    assert logged["lr"][0][1] == logged["lr"][-1][1]
    from diffusers import DiTTransformer2DModel

    DiTTransformer2DModel.from_pretrained(folder / "model")
    assert "student: block 2 of 8 (transformer_blocks.1)" in result.out
    for name in ("loss=", "layersync_loss=", "layersync_similarity="):
        assert name in result.err
    written = {path.suffix for path in (folder / "checkpoint-4").glob("layersync*")}
    assert written == {".safetensors"}


def test_it_learns(train):
    result = train(max_train_steps=40, train_batch_size=32, logging_steps=10, checkpointing_steps=100)
    history = json.loads((result.folder / "checkpoint-40" / "trainer_state.json").read_text())["history"]
    assert [row["step"] for row in history] == [10, 20, 30, 40]
    assert history[-1]["loss"] < 0.75 * history[0]["loss"]


@pytest.mark.parametrize("wanted", ["vanilla", "lower", "default"])
def test_the_users_layersync_settings_replace_the_default_pair(train, wanted):
    settings = {
        "vanilla": {"layersync_enabled": "false"},
        "lower": {**PAIR, "layersync_student_block": 1, "layersync_lambda": 0.5},
        "default": {},
    }[wanted]
    result = train(max_train_steps=1, **settings)
    run = json.loads((result.folder / "run.json").read_text())
    if wanted == "vanilla":
        assert run["blocks"] == []
        assert "layersync_loss" not in run["metrics"]
    else:
        weight = {"lower": 0.5, "default": 0.2}[wanted]
        assert run["metrics"]["layersync_loss"] == pytest.approx(-weight * run["metrics"]["layersync_similarity"])
        assert run["blocks"][0]["student"].startswith("block 1" if wanted == "lower" else "block 2")


def test_flags_win_over_the_file(train, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"--max_train_steps": 5, "seed": 7, **PAIR, "layersync_lambda": 0.3}))
    result = train(config=file, max_train_steps=1)
    run = json.loads((result.folder / "run.json").read_text())
    assert (run["steps"], run["seed"], run["config"]["layersync_lambda"]) == (1, 7, 0.3)


ERRORS = [
    ({"layersync_enabled": "true"}, "layersync_student_block is missing"),
    ({**PAIR, "layersync_lambda": 0}, "layersync_lambda is 0; it must be finite and greater than 0"),
    ({**PAIR, "layersync_lambda": "nan"}, "layersync_lambda is nan"),
    ({**PAIR, "layersync_lambda": "inf"}, "layersync_lambda is inf"),
    ({**PAIR, "layersync_lambda": -1}, "layersync_lambda is -1"),
    ({**PAIR, "layersync_lambda": 1e300}, "layersync_lambda is '1e+300': single precision takes it for 0"),
    ({**PAIR, "layersync_lambda": 1e-300}, "layersync_lambda is '1e-300': single precision takes it for 0"),
    ({**PAIR, "layersync_student_block": -1}, "layersync_student_block is '-1'"),
    ({**PAIR, "layersync_student_block": 1.5}, "layersync_student_block is '1.5'"),
    ({**PAIR, "layersync_teacher_block": 9}, "LayerSync could not find layer"),
    ({**PAIR, "layersync_pairs": "[[2, 5]]"}, "exclude each other"),
    ({"family": "lumina2"}, "LayerSync does not support"),
    ({"family": "nothing"}, "unknown family 'nothing'"),
    ({"model": "/nowhere/at/all"}, "does not exist"),
    ({"report_to": "wandb"}, "pip install wandb"),
    ({"report_to": "paper"}, "report_to is 'paper'"),
    ({"resume_from_checkpoint": "/nowhere/checkpoint-1"}, "is not a folder"),
    ({"max_train_steps": 0}, "max_train_steps is '0'"),
]


@pytest.mark.parametrize(("settings", "text"), ERRORS, ids=[text[:30] for _, text in ERRORS])
def test_start_up_errors_take_one_line_and_leave_nothing(train, settings, text):
    result = train(**settings)
    assert result.code == 2
    assert text in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not result.folder.exists()


def test_a_family_that_does_not_say_how_it_is_fed(train, monkeypatch):
    from layersync_plugin_trainer import models

    module = ModuleType("somebodys.tiny")
    module.tiny_model = module.example_inputs = lambda *_: pytest.fail("the module was used")
    monkeypatch.setattr(models, "load_tiny", lambda family: module)
    result = train(family="wan")
    assert result.code == 2
    assert "family wan: somebodys.tiny lacks modality, sample, axes, timestep, without which" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not result.folder.exists()


def test_a_missing_adapter_is_the_remedy(train, monkeypatch):
    from layersync_core.families import registry

    monkeypatch.setattr(registry, "installed", dict)
    result = train(family="wan")
    assert result.code == 2
    assert "pip install layersync-adapter-wan" in result.err
    assert not result.folder.exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains_or_is_refused_in_one_line(train, precision):
    result = train(mixed_precision=precision)
    if result.code:
        assert (precision, result.code) == ("fp16", 2)
        assert len(result.err.strip().splitlines()) == 1
    else:
        weights = load_file(result.folder / WEIGHTS)
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        assert all(weight.isfinite().all() for weight in weights.values())


def test_an_unknown_layersync_key_in_a_file(train, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**PAIR, "layersync_studnet": 3}))
    result = train(config=file)
    assert result.code == 2
    assert "did you mean layersync_student_block" in result.err
    file.write_text(json.dumps({**PAIR, "layersync_student_block": True}))
    result = train(config=file)
    assert result.code == 2
    assert "layersync_student_block is True" in result.err


def test_a_full_folder_is_refused_and_left_alone(train, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    result = train(output_dir=folder)
    assert result.code == 2
    assert "is not empty" in result.err
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    result = train(output_dir=folder / "thesis.txt")
    assert result.code == 2
    assert "is a file" in result.err


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"gradient_accumulation_steps": 2, "lr_scheduler": "cosine", "lr_warmup_steps": 2},
        {"rank": 2, "mixed_precision": "bf16"},
    ],
    ids=["plain", "cosine", "lora"],
)
def test_a_resumed_run_continues_bit_for_bit(train, more, monkeypatch):
    whole = train(folder="whole", max_train_steps=5, checkpointing_steps=2, logging_steps=2, **more)
    assert whole.code == 0, whole.err
    # The same run, as if it had died after its checkpoint at step 2.
    died = whole.folder.parent / "died"
    died.mkdir()
    shutil.copytree(whole.folder / "checkpoint-2", died / "checkpoint-2")
    resumed = train(output_dir=died, resume_from_checkpoint="latest")
    assert resumed.code == 0, resumed.err
    assert f"resuming {died}/checkpoint-2 at step 2" in resumed.out
    for name in ("model.safetensors",):
        assert same(whole.folder / "checkpoint-5" / name, died / "checkpoint-5" / name)
    state = [torch.load(place / "checkpoint-5" / "optimizer.bin", weights_only=True) for place in (whole.folder, died)]
    for one, other in zip(state[0]["state"].values(), state[1]["state"].values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    histories = [
        json.loads((place / "checkpoint-5" / "trainer_state.json").read_text())["history"]
        for place in (whole.folder, died)
    ]
    assert histories[0] == histories[1]
    assert (whole.folder / "samples.png").read_bytes() == (died / "samples.png").read_bytes()


def test_stopping_and_resuming_changes_nothing_that_random_layers_draw(train, monkeypatch):
    # Dropout draws from the process's generator, which a checkpoint must carry.
    from layersync_plugin_trainer import digits_dit

    plain = digits_dit.tiny_model

    def with_dropout():
        model = plain()
        for block in model.transformer_blocks:
            block.ff.net[1].p = 0.5
        return model

    monkeypatch.setattr(digits_dit, "tiny_model", with_dropout)
    whole = train(folder="whole", max_train_steps=4, checkpointing_steps=2)
    died = whole.folder.parent / "died"
    died.mkdir()
    shutil.copytree(whole.folder / "checkpoint-2", died / "checkpoint-2")
    train(output_dir=died, resume_from_checkpoint=died / "checkpoint-2")
    assert same(whole.folder / WEIGHTS, died / WEIGHTS)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_more_steps_and_other_layersync_settings_on_resume_are_printed(train, copy):
    result = train(output_dir=copy, resume_from_checkpoint="latest", max_train_steps=4, **PAIR, layersync_lambda=0.7)
    assert result.code == 0, result.err
    assert "regularizer settings change from here on" in result.out
    run = json.loads((copy / "run.json").read_text())
    assert run["steps"] == 4
    assert run["metrics"]["layersync_loss"] == pytest.approx(-0.7 * run["metrics"]["layersync_similarity"])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"learning_rate": 0.5}, "learning_rate was None"),
        ({"seed": 9}, "seed was 0"),
        ({"family": "wan"}, "family was None"),
        ({"rank": 2}, "rank was None"),
        ({"max_train_steps": 2}, "has 3 steps, more than max_train_steps 2"),
        ({**PAIR, "layersync_teacher_block": 99}, "LayerSync could not find layer"),
    ],
)
def test_what_a_resumed_run_cannot_change_is_refused(train, copy, settings, text):
    before = contents(copy)
    result = train(output_dir=copy, resume_from_checkpoint="latest", **settings)
    assert result.code == 2
    assert text in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert contents(copy) == before


def test_a_torn_checkpoint_is_refused_and_the_whole_one_works(train, copy):
    weights = copy / "checkpoint-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    before = contents(copy)
    result = train(output_dir=copy, resume_from_checkpoint="latest")
    assert result.code == 2
    assert "checkpoint-3 is torn" in result.err
    assert f"the newest whole one is {copy / 'checkpoint-2'}" in result.err
    assert contents(copy) == before
    result = train(resume_from_checkpoint=copy / "checkpoint-2", output_dir=copy)
    assert result.code == 0, result.err
    assert json.loads((copy / "run.json").read_text())["steps"] == 3


def test_another_models_checkpoint_is_refused(train, copy, monkeypatch):
    from layersync_plugin_trainer import digits_dit

    deeper = type(digits_dit.tiny_model())
    monkeypatch.setattr(
        digits_dit,
        "tiny_model",
        lambda: deeper(num_attention_heads=2, attention_head_dim=8, in_channels=1, num_layers=6, sample_size=8),
    )
    before = contents(copy)
    result = train(output_dir=copy, resume_from_checkpoint="latest")
    assert result.code == 2
    assert "is of another run: model config differs" in result.err
    assert contents(copy) == before


def test_old_checkpoints_go_when_there_is_a_limit(train):
    result = train(max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=2)
    assert sorted(path.name for path in result.folder.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_a_failed_write_leaves_the_last_checkpoint_whole(train, tmp_path, monkeypatch):
    from layersync_plugin_trainer import checkpoint

    real, calls = checkpoint.save_states, []

    def fail_later(*arguments):
        calls.append(1)
        if len(calls) > 1:
            raise OSError("disk full")
        real(*arguments)

    monkeypatch.setattr(checkpoint, "save_states", fail_later)
    result = train(max_train_steps=4, checkpointing_steps=1)
    assert result.code == 2
    assert "checkpoint-2 could not be written: disk full; checkpoint-1 is whole" in result.err
    assert checkpoint.locate("latest", tmp_path / "run").step == 1


def test_gradient_checkpointing_changes_nothing_but_memory(train):
    plain = train(folder="plain")
    saved = train(folder="saved", gradient_checkpointing="true")
    one, other = (load_file(place.folder / WEIGHTS) for place in (plain, saved))
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=1e-6, rtol=1e-5)


def test_lora_trains_and_exports_only_adapter_weights(train):
    result = train(rank=2, max_train_steps=1)
    assert result.code == 0, result.err
    exported = load_file(result.folder / "model" / "adapter_model.safetensors")
    assert exported
    assert all("lora" in name for name in exported)
    saved = load_file(result.folder / "checkpoint-1" / "model.safetensors")
    assert all("lora" in name for name in saved)
    run = json.loads((result.folder / "run.json").read_text())
    assert run["model"]["trained_weights"] < run["model"]["weights"] / 5
    assert run["config"]["layersync_preset"] == "lora"
    from peft import PeftModel

    from layersync_plugin_trainer.digits_dit import tiny_model

    loaded = dict(PeftModel.from_pretrained(tiny_model(), str(result.folder / "model")).named_parameters())
    first = next(iter(exported))
    assert torch.equal(loaded[first.replace(".weight", ".default.weight")], exported[first])


def test_a_local_folder_is_trained(train, tmp_path):
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    DiTTransformer2DModel(2, 8, 1, num_layers=5, sample_size=8, num_embeds_ada_norm=10).save_pretrained(
        tmp_path / "pipeline" / "transformer"
    )
    result = train(model=tmp_path / "pipeline", max_train_steps=1, learning_rate=0)
    assert result.code == 0, result.err
    assert same(result.folder / WEIGHTS, tmp_path / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors")


def test_a_local_folder_is_judged_before_its_weights_are_read(train, tmp_path):
    from diffusers import DiTTransformer2DModel

    DiTTransformer2DModel(2, 8, 1, num_layers=5, sample_size=8).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    result = train(model=tmp_path / "model", **PAIR | {"layersync_teacher_block": 6})
    assert result.code == 2
    assert "LayerSync could not find layer" in result.err
    result = train(model=tmp_path / "model")
    assert result.code == 2
    assert "cannot be loaded" in result.err
    assert not result.folder.exists()
    config = {"_class_name": "Lumina2Transformer2DModel"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    result = train(model=tmp_path / "model")
    assert result.code == 2
    assert "LayerSync does not support" in result.err


def test_a_model_that_the_data_does_not_fit_is_refused(train, tmp_path):
    from diffusers import DiTTransformer2DModel

    DiTTransformer2DModel(2, 8, 4, num_layers=5, sample_size=8).save_pretrained(tmp_path / "latent")
    result = train(model=tmp_path / "latent")
    assert result.code == 2
    assert "cannot be fed with embedded data" in result.err
    assert "layersync_core.attach" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not result.folder.exists()


@pytest.mark.parametrize("family", ["flux", "wan"])
def test_other_families_train_on_data_that_fits(train, family):
    pytest.importorskip(f"layersync_adapter_{family}")
    result = train(family=family, max_train_steps=2)
    assert result.code == 0, result.err
    assert ("handwritten digits" if family == "flux" else "moving shapes") in result.out
    assert is_png(result.folder / "samples.png")


def test_a_vanilla_arm_beside_layersync(train):
    result = train("--compare", max_train_steps=3, checkpointing_steps=2, logging_steps=1)
    assert result.code == 0, result.err
    folder = result.folder
    assert is_png(folder / "compare.png")
    assert is_png(folder / "compare_samples.png")
    assert not list(folder.glob("*/report.html"))  # one for both
    page = (folder / "report.html").read_text()
    said = json.loads((folder / "compare.json").read_text())
    for row in said["rows"]:
        assert all(f">{cell}<" in page for cell in row)
    assert page.count('src="data:image/png;base64,') == 2
    assert page.count('class="line1"') == 2  # vanilla's loss, and its piece of the legend
    report = (folder / "report.md").read_text()
    assert "| similarity of the pair, before |" in report
    assert "student block 2 of 8 (transformer_blocks.1)" in report
    histories = {
        name: json.loads((folder / name / "checkpoint-3" / "trainer_state.json").read_text())["history"]
        for name in ("layersync", "vanilla")
    }
    # The same weights, samples, noise and times: the first loss is the same number.
    assert histories["layersync"][0]["loss"] == histories["vanilla"][0]["loss"]
    assert histories["layersync"][-1]["loss"] != histories["vanilla"][-1]["loss"]
    assert not same(folder / "layersync" / WEIGHTS, folder / "vanilla" / WEIGHTS)

    # The vanilla arm is a run without LayerSync, and a stopped comparison continues.
    alone = train(folder="alone", max_train_steps=3, layersync_enabled="false")
    assert same(folder / "vanilla" / WEIGHTS, alone.folder / WEIGHTS)
    wanted = (folder / "vanilla" / WEIGHTS).read_bytes()
    shutil.rmtree(folder / "vanilla")
    again = train(output_dir=folder, resume_from_checkpoint="latest")
    assert again.code == 0, again.err
    assert (folder / "vanilla" / WEIGHTS).read_bytes() == wanted
    one_arm = train(output_dir=folder, resume_from_checkpoint=folder / "layersync" / "checkpoint-2")
    assert one_arm.code == 2
    assert "one arm of a comparison" in one_arm.err


def test_going_back_never_writes_over_later_checkpoints(train):
    first = train(max_train_steps=4, checkpointing_steps=2)
    assert first.code == 0
    later = first.folder / "checkpoint-4"
    before = {path.name: path.read_bytes() for path in later.iterdir()}
    again = train(output_dir=first.folder, resume_from_checkpoint=first.folder / "checkpoint-2", max_train_steps=3)
    assert again.code == 2
    assert "later checkpoints, up to checkpoint-4" in again.err
    assert {path.name: path.read_bytes() for path in later.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_refused(train):
    result = train(output_dir="/proc/nowhere")
    assert result.code == 2
    assert "output_dir /proc/nowhere cannot be written" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_a_loss_that_is_nan_is_said(train):
    result = train(max_train_steps=4, logging_steps=1, learning_rate="1e20")
    assert "warning: the loss is nan" in result.out
