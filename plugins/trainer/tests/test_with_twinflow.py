"""TwinFlow as the main loss of a run: beside LayerSync and CREPA, resumed, split, computed anew, compared, exported."""

from __future__ import annotations

import json
import subprocess

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file
from torch.nn import functional as F

from layersync_core import Term, attach
from layersync_plugin_trainer import arm, data, objective
from layersync_plugin_trainer.config import TrainerConfig
from layersync_plugin_trainer.feeding import Feed
from layersync_plugin_trainer.models import find_source
from layersync_plugin_twinflow import Draws, Rule, few_steps, load_twinflow, twinflow_loss
from layersync_plugin_twinflow.target_time import TargetTime
from plugins.trainer.tests.launching import ENVIRONMENT, accelerate

STATE = "layersync_state.safetensors"
TWINFLOW = {"twinflow_enabled": True, "twinflow_adversarial_enabled": True}
LAYERSYNC = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}
CREPA = {"crepa_enabled": True, "crepa_block_index": 0, "crepa_teacher_block_index": 2}
CREPA |= {"crepa_feature_source": "backbone"}
OFF = {"layersync_enabled": False}


class Weightless:
    """The same forwards, but not their loss."""

    def __init__(self, inner):
        self._inner, self.name = inner, inner.name

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def compute(self, predict, batch, step):
        return Term(0 * self._inner.compute(predict, batch, step).loss)


def disturbed(model):
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():  # weights that start at zero would hide half of the gradients
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=source)


def make(family, settings, regularizers, wrap=lambda main: main):
    """A trainer after ``begin``, with weights none of which is zero; its own batches."""
    config = TrainerConfig(train_batch_size=4, max_grad_norm=1e9, family=family)
    source = find_source(config.model, config.family)
    set_seed(0)
    model = source.build(config)
    feed = Feed(source.tiny, model)
    main = wrap(objective.enabled(settings))
    layout = feed.layout
    main.begin(model, guided=feed.null_label is not None)
    disturbed(model)
    if main.module is not None:
        main.module.update()  # now different from the student
    dataset = data.load(layout.modality, layout.shape, feed.classes)
    set_seed(1)
    sync = attach(model, regularizers, family=family, objective=main)
    trainer = arm.prepare(Accelerator(), model, sync, feed, config, main)
    return trainer, objective.Batches(dataset, 0, 4, null_label=feed.null_label)


def gradients(trainer, batches):
    seen = {}

    def note(*_):
        named = [*trainer.model.named_parameters(), *trainer.sync.modules().named_parameters()]
        seen.update({name: p.grad.clone() for name, p in named if p.grad is not None})

    trainer.optimizer.optimizer.register_step_pre_hook(note)
    trainer.step(batches.of_step(0))
    trainer.sync.remove()
    return seen


@pytest.mark.parametrize("convention", ["delta", "sign"])
def test_gradients_beside_crepa_and_layersync_are_the_sum_of_the_three(convention):
    settings = TWINFLOW | {"twinflow_time_embedding": convention}
    together = gradients(*make("wan", settings, LAYERSYNC | CREPA))
    alone = [
        gradients(*make("wan", settings, OFF)),
        gradients(*make("wan", settings, OFF | CREPA, Weightless)),
        gradients(*make("wan", settings, LAYERSYNC, Weightless)),
    ]
    for each in alone:
        assert any(gradient.abs().max() > 1e-6 for gradient in each.values())
    assert any(name.startswith("twinflow_time") and value.any() for name, value in together.items())
    assert any(name.startswith("crepa") for name in together)
    for name, gradient in together.items():
        parts = [each[name] for each in alone if name in each]
        torch.testing.assert_close(gradient, torch.stack(parts).sum(0), atol=1e-6, rtol=1e-4, msg=name)


def test_the_loss_is_the_functions_and_layersync_reads_the_main_pass():
    trainer, batches = make("dit", TWINFLOW, LAYERSYNC)
    config = TrainerConfig(family="dit")
    set_seed(0)
    model = find_source(None, "dit").build(config)
    time = TargetTime(model, "delta", True)
    disturbed(model)
    (batch,) = batches.of_step(0)
    feed, average = trainer.feed, trainer.objective.module
    teacher = find_source(None, "dit").build(config)
    of_teacher = TargetTime(teacher, "delta", True)
    with torch.no_grad():
        for name, weight in teacher.named_parameters():
            weight.copy_(average.get_buffer(name.replace(".", "/")))
    states = {}  # of the first forward, which is the main pass
    for index in (1, 3):
        model.transformer_blocks[index].register_forward_hook(
            lambda module, args, output, index=index: states.update({index: states.get(index, output)})
        )

    def call(model, time):
        def fed(x, t, target, labels):
            with time.told(t, target):
                return feed(model, x, t, labels)

        return fed

    loss, parts = twinflow_loss(
        call(model, time),
        *(batch.clean, batch.noise, batch.time, batch.labels),
        rule=Rule(adversarial=True),
        teacher_fn=call(teacher, of_teacher),
        unconditional=batch.unconditional,
        draws=Draws(batch.uniform("target"), batch.normal("fake noise"), batch.uniform("fake time")),
    )
    similarity = F.cosine_similarity(states[1], states[3].detach(), dim=-1).mean()
    (loss - 0.2 * similarity).backward()
    seen = gradients(trainer, batches)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(seen[name], weight.grad, atol=1e-6, rtol=1e-3, msg=name)
    metrics = trainer.read_metrics()
    assert metrics == pytest.approx(
        {
            "loss": loss.item(),
            **{name: value.item() for name, value in parts.items()},
            "layersync_loss": -0.2 * similarity.item(),
            "layersync_similarity": similarity.item(),
        },
        abs=1e-5,
    )


def first_gradients(checkpoint):
    # After one step Adam's first moment is a tenth of the gradient.
    state = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"]
    return [10 * entry["exp_avg"] for entry in state.values()]


ONE_STEP = {
    "max_train_steps": 1,
    "max_grad_norm": 1e9,
    "twinflow_enabled": "true",
    "twinflow_adversarial_enabled": "true",
}


def run_of(result):
    assert result.code == 0, result.err
    return json.loads((result.folder / "run.json").read_text())


def alike(one, other):
    for single, split in zip(*(first_gradients(place / "checkpoint-1") for place in (one, other)), strict=True):
        torch.testing.assert_close(split, single, atol=1e-5, rtol=1e-3)
    metrics = [json.loads((place / "run.json").read_text())["metrics"] for place in (one, other)]
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-4)
    average = [load_file(place / "checkpoint-1" / STATE) for place in (one, other)]
    assert any(name.startswith("twinflow/") for name in average[0])
    for name, value in average[0].items():
        torch.testing.assert_close(average[1][name], value, atol=1e-4, rtol=1e-3, msg=name)


def test_split_over_forwards_or_recomputed_it_trains_the_same(train):
    one = train(folder="one", train_batch_size=8, **ONE_STEP)
    metrics = run_of(one)["metrics"]
    names = {"twinflow_base", "twinflow_realvel", "twinflow_adv", "twinflow_rectify", "layersync_similarity"}
    assert names <= set(metrics)
    assert "twinflow target time: delta, at transformer_blocks.0.norm1.emb.timestep_embedder and 7 more" in one.out
    assert "twinflow teacher: moving average of the weights, decay 0.99" in one.out
    split = train(folder="split", train_batch_size=4, gradient_accumulation_steps=2, **ONE_STEP)
    run_of(split)
    alike(one.folder, split.folder)
    anew = train("--gradient_checkpointing", folder="anew", train_batch_size=8, **ONE_STEP)
    run_of(anew)
    alike(one.folder, anew.folder)


@pytest.mark.slow
@pytest.mark.parametrize("convention", ["delta", "sign"])
def test_two_processes_train_what_one_trains(train, tmp_path, convention):
    settings = ONE_STEP | {"twinflow_time_embedding": convention}
    one = train(folder="one", train_batch_size=8, **settings)
    run_of(one)
    flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
    launched = subprocess.run(
        accelerate("--output_dir", tmp_path / "two", "--train_batch_size", 4, *flags),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    alike(one.folder, tmp_path / "two")


@pytest.mark.parametrize("more", [{}, {"rank": 4, "twinflow_time_embedding": "sign"}], ids=["whole", "LoRA"])
def test_a_resumed_run_continues_bit_for_bit(train, more):
    settings = {"twinflow_enabled": "true", "twinflow_adversarial_enabled": "true", "checkpointing_steps": 2, **more}
    whole = train(folder="whole", max_train_steps=4, learning_rate=0.01, **settings)
    run_of(whole)
    middle, end = (load_file(whole.folder / f"checkpoint-{step}" / STATE) for step in (2, 4))
    assert (middle["twinflow/updates"], end["twinflow/updates"]) == (2, 4)
    again = train(output_dir=whole.folder.with_name("again"), resume_from_checkpoint=whole.folder / "checkpoint-2")
    run_of(again)
    for file in (STATE, "model.safetensors"):
        one, other = (load_file(place / "checkpoint-4" / file) for place in (whole.folder, again.folder))
        assert one.keys() == other.keys()
        assert any("twinflow" in name for name in one), file
        assert all(torch.equal(one[name], other[name]) for name in one)
    without = train(
        output_dir=whole.folder, resume_from_checkpoint="latest", max_train_steps=5, twinflow_enabled="false",
        twinflow_adversarial_enabled=None,
    )  # fmt: skip
    assert without.code == 2
    assert "is of another run: objective was 'twinflow', is 'flow matching'" in without.err


def test_both_arms_of_a_comparison_have_samples_in_few_steps(train, monkeypatch):
    panels = {}
    from layersync_plugin_trainer import report

    draw = report.draw_samples
    monkeypatch.setattr(report, "draw_samples", lambda file, *rest: (panels.update({file: rest[1]}), draw(file, *rest)))
    result = train("--compare", twinflow_enabled="true", twinflow_target_step_count=3, logging_steps=1)
    assert result.code == 0, result.err
    assert result.out.count("objective: twinflow\n") == 2
    assert len(panels) == 2
    drawn = ["TwinFlow, 1 step", "TwinFlow, 2 steps", "TwinFlow, 3 steps", "TwinFlow, 4 steps"]
    for shown in panels.values():
        assert list(shown) == ["real handwritten digits", "samples of the model", *drawn]
        assert all(shown[name].shape == (40, 1, 8, 8) for name in drawn)
    for name in ("layersync", "vanilla"):
        run = json.loads((result.folder / name / "run.json").read_text())
        assert {"twinflow_base", "twinflow_realvel"} <= set(run["metrics"])
        assert (result.folder / name / "model" / "twinflow.safetensors").is_file()


def test_the_exported_model_samples_in_few_steps_without_the_trainer(train, monkeypatch):
    kept = {}
    finish = arm._finish
    monkeypatch.setattr(arm, "_finish", lambda outcome, *rest: (finish(outcome, *rest), kept.update(it=outcome)))
    result = train(twinflow_enabled="true", max_train_steps=20, learning_rate=0.02)
    run_of(result)
    folder = result.folder / "model"
    assert not [name for name in load_file(folder / "diffusion_pytorch_model.safetensors") if "twinflow" in name]

    model = DiTTransformer2DModel.from_pretrained(folder).eval()
    time = load_twinflow(model, folder)
    labels = torch.arange(40) % 10

    def velocity(x, t, target):
        with time.told(t, target):
            return model(x, timestep=1000 * t, class_labels=labels).sample[:, :1]

    feed = Feed(find_source(None, "dit").tiny, model)
    noise = objective.sample_noise(feed, 40, 0)
    outcome = kept["it"]
    for steps in (1, 2, 4):
        title = f"TwinFlow, {steps} step{'s' if steps > 1 else ''}"
        drawn = few_steps(velocity, noise, steps, "any")
        torch.testing.assert_close(drawn, outcome.further_samples[title], atol=1e-5, rtol=1e-4)
    plain = DiTTransformer2DModel.from_pretrained(folder).eval()
    with torch.no_grad():
        same = [each(noise, timestep=torch.full((40,), 300.0), class_labels=labels).sample for each in (model, plain)]
    assert torch.equal(*same), "without target times it is the plain model"

    # And a further run goes on from there.
    again = train(folder="again", model=folder, twinflow_enabled="true")
    run_of(again)
    assert f"twinflow goes on from {folder / 'twinflow.safetensors'}" in again.out
    other = train(folder="other", model=folder, twinflow_enabled="true", twinflow_time_embedding="sign")
    assert other.code == 2
    assert "was trained with convention delta, these settings say sign" in other.err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"family": "flux"}, "TwinFlow cannot train family flux"),
        ({"family": "sd3", "twinflow_enhanced_ratio": 0.5}, "twinflow_enhanced_ratio has no effect: SD3Transformer2D"),
        ({"twinflow_require_ema": "false"}, "twinflow_require_ema is false, so there would be no teacher"),
        ({"twinflow_target_step_count": 9}, "twinflow_target_step_count"),
    ],
)
def test_what_cannot_work_is_reported_at_the_start(train, settings, said):
    result = train(twinflow_enabled="true", **settings)
    assert result.code == 2
    assert said in " ".join(result.err.split())
    assert not result.folder.exists()


@pytest.mark.parametrize("family", ["sd3", "qwen_image", "sana", "wan"])
def test_each_family_trains_and_is_exported(train, family):
    result = train(twinflow_enabled="true", family=family, train_batch_size=2, twinflow_adversarial_enabled="true")
    metrics = run_of(result)["metrics"]
    assert all(abs(metrics[name]) < 1e6 for name in ("twinflow_base", "twinflow_adv"))
    weights = load_file(result.folder / "model" / "twinflow.safetensors")
    assert any(value.any() for name, value in weights.items() if name.endswith("delta.2.weight")), "it was trained"


def test_without_an_ema_nothing_is_kept(train):
    result = train(twinflow_enabled="true", twinflow_allow_no_ema_teacher="true")
    run_of(result)
    assert "twinflow teacher: the model itself" in result.out
    assert not [*load_file(result.folder / "checkpoint-2" / STATE)]
