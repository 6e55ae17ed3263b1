"""A plugin's objective instead of flow matching: its gradient, its main pass, its metrics, and what is refused."""

from __future__ import annotations

import contextlib
import copy
import json
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from pydantic import BaseModel
from safetensors.torch import load_file
from torch.nn import functional as F

from layersync_core import CaptureError, LayerSyncError, Term, attach, hookimpl, is_on, plugins, third_parties
from layersync_plugin_trainer import arm, data, objective
from layersync_plugin_trainer.config import TrainerConfig
from layersync_plugin_trainer.feeding import Feed
from layersync_plugin_trainer.models import find_source

STATE = "layersync_state.safetensors"
WEIGHT = 0.5
PAIR = {
    "layersync_enabled": True,
    "layersync_student_block": 2,
    "layersync_teacher_block": 5,
    "layersync_lambda": WEIGHT,
}


class Agreeing:
    """Velocity at its own times, and agreement with a second forward at another time, which is trained as well."""

    name = "agreeing"

    def __init__(self, main_pass_first=True):
        self.main_pass_first = main_pass_first

    def main(self, predict, batch):
        time = batch.time.square()
        share = time.reshape(-1, 1, 1, 1)
        return predict((1 - share) * batch.clean + share * batch.noise, time, batch.labels)

    def second(self, predict, batch):
        return predict(batch.noise, torch.ones_like(batch.time), batch.labels)

    def together(self, main, second, batch):
        gap = F.mse_loss(main, second)
        return Term(F.mse_loss(main, batch.noise - batch.clean) + 0.3 * gap, {"agreeing_gap": gap})

    def compute(self, predict, batch, step):
        main = self.main(predict, batch) if self.main_pass_first else None
        with predict.paused():
            second = self.second(predict, batch)
        with torch.no_grad():
            predict(batch.clean, torch.zeros_like(batch.time), batch.labels)
        return self.together(self.main(predict, batch) if main is None else main, second, batch)


class Other:
    """Returns a given loss."""

    name = "other"

    def __init__(self, compute=lambda predict, batch, step: Term(objective.flow_loss(predict, batch))):
        self.compute = compute


class Learning:
    """Velocity scaled by its own weight, with a step count; uses every part of the objective's protocol."""

    name = "learning"

    def begin(self, model, guided):
        self.guided, self.module = guided, torch.nn.Linear(1, 1, bias=False)
        self.module.register_buffer("steps", torch.zeros(()))

    def describe(self):
        return [f"learning: guided {self.guided}"]

    def compute(self, predict, batch, step):
        velocity = predict(batch.noisy, batch.time, batch.labels)
        share = batch.uniform("share").reshape(-1, 1, 1, 1)
        target = batch.noise - batch.clean + 0.1 * share * batch.normal("more")
        return Term(F.mse_loss(self.module.weight * velocity, target))

    def after_step(self, step):
        self.module.steps += 1

    def draw(self, predict, noise, labels):
        assert not torch.is_grad_enabled()
        with predict.paused():
            return {"in one step": noise - predict(noise, torch.ones(len(noise)), labels)}

    def export(self, model, folder):
        folder.mkdir()
        (folder / "learning.txt").write_text(str(self.module.weight.item()))


def make(main, settings=PAIR):
    config = TrainerConfig(train_batch_size=4, max_grad_norm=1e9)
    source = find_source(config.model, config.family)
    set_seed(0)
    model = source.build(config)
    feed = Feed(source.tiny, model)
    batches = objective.Batches(data.load("image", (1, 8, 8)), 0, 4, null_label=feed.null_label)
    untouched = copy.deepcopy(model)
    sync = attach(model, settings, objective=main)
    return arm.prepare(Accelerator(), model, sync, feed, config, main), batches, untouched


@pytest.mark.parametrize("main_pass_first", [True, False])
def test_its_gradient_and_the_term_of_its_main_pass(main_pass_first):
    trainer, batches, model = make(Agreeing(main_pass_first))
    seen = {}
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: seen.update({name: p.grad.clone() for name, p in trainer.model.named_parameters()})
    )
    trainer.step(batches.of_step(0))
    metrics = trainer.read_metrics()

    (batch,), by_hand, predict = batches.of_step(0), Agreeing(), partial(trainer.feed, model)
    states = []
    handles = [
        model.transformer_blocks[index].register_forward_hook(lambda module, args, output: states.append(output))
        for index in (1, 4)
    ]
    main = by_hand.main(predict, batch)
    for handle in handles:
        handle.remove()
    student, teacher = states
    similarity = F.cosine_similarity(student, teacher.detach(), dim=-1).mean()
    expected = by_hand.together(main, by_hand.second(predict, batch), batch)
    (expected.loss - WEIGHT * similarity).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(seen[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert metrics == pytest.approx(
        {
            "loss": expected.loss.item(),
            "agreeing_gap": expected.metrics["agreeing_gap"].item(),
            "layersync_loss": -WEIGHT * similarity.item(),
            "layersync_similarity": similarity.item(),
        },
        abs=1e-5,
    )


def twice(predict, batch, step):
    return Term(objective.flow_loss(predict, batch) + objective.flow_loss(predict, batch))


def paused(predict, batch, step):
    with predict.paused():
        return Term(objective.flow_loss(predict, batch))


@pytest.mark.parametrize(
    ("compute", "error", "said"),
    [
        (twice, CaptureError, "a second training forward"),
        (paused, CaptureError, r"the last forward ran inside paused\(\)"),
        (lambda predict, batch, step: objective.flow_loss(predict, batch), LayerSyncError, "other returned a Tensor"),
        (lambda predict, batch, step: Term(predict(batch.noisy, batch.time, batch.labels)), LayerSyncError, "as shape"),
        (
            lambda predict, batch, step: Term(objective.flow_loss(predict, batch), {"loss": batch.time.mean()}),
            LayerSyncError,
            "objective other returned a metric 'loss'; call it other_loss",
        ),
    ],
)
def test_one_that_does_what_it_may_not_is_reported(compute, error, said):
    trainer, batches, _ = make(Other(compute))
    with pytest.raises(error, match=said):
        trainer.step(batches.of_step(0))


@pytest.fixture
def register():
    """Make objectives come from an installed plugin, which reads its own keys."""
    names = []

    def register(make):
        key = f"{make().name}_enabled"

        class Plugin:
            @hookimpl
            def layersync_config_models(self):
                return [type("Config", (BaseModel,), {"__annotations__": {key: bool}, key: False})]

            @hookimpl
            def layersync_objectives(self, config):
                return [make()] if is_on(config.given.get(key)) else []

        names.append(key)
        for loaded in (plugins(), third_parties()):  # the flags of the command are read without torch
            loaded.manager.register(Plugin(), name=key)

    yield register
    for name in names:
        for loaded in (plugins(), third_parties()):
            loaded.manager.unregister(name=name)


def test_both_arms_of_a_comparison_train_it(train, register):
    register(Agreeing)
    result = train("--compare", agreeing_enabled="true", logging_steps=1)
    assert result.code == 0, result.err
    assert result.out.count("objective: agreeing\n") == 2
    for name, wanted in (("layersync", {"layersync_loss", "layersync_similarity"}), ("vanilla", set())):
        run = json.loads((result.folder / name / "run.json").read_text())
        assert run["objective"] == "agreeing"
        assert set(run["metrics"]) == {"loss", "agreeing_gap", "held_out_loss"} | wanted


def test_its_part_is_trained_saved_and_resumed_bit_for_bit(train, register, monkeypatch):
    register(Learning)
    panels = []
    monkeypatch.setattr("layersync_plugin_trainer.report.draw_samples", lambda file, *rest: panels.append(rest[1]))
    monkeypatch.setattr("layersync_plugin_trainer.report.whole", lambda file: contextlib.nullcontext(file))
    shared = {"learning_enabled": "true", "checkpointing_steps": 2, "learning_rate": 0.01}
    whole = train(folder="whole", max_train_steps=4, **shared)
    assert whole.code == 0, whole.err
    assert "objective: learning\nlearning: guided True\n" in whole.out
    assert list(panels[0]) == ["real handwritten digits", "samples of the model", "in one step"]
    assert panels[0]["in one step"].shape == (40, 1, 8, 8)
    middle, end = (load_file(whole.folder / f"checkpoint-{step}" / STATE) for step in (2, 4))
    assert (middle["learning/steps"], end["learning/steps"]) == (2, 4)
    assert not torch.equal(middle["learning/weight"], end["learning/weight"]), "its weight is trained"
    assert (whole.folder / "model" / "learning.txt").read_text() == str(end["learning/weight"].item())
    again = train(output_dir=whole.folder.with_name("again"), resume_from_checkpoint=whole.folder / "checkpoint-2")
    assert again.code == 0, again.err
    for file in (STATE, "model.safetensors"):
        one, other = (load_file(place / "checkpoint-4" / file) for place in (whole.folder, again.folder))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_of_another_objective_is_reported(train, register):
    register(Learning)
    first = train(learning_enabled="true", max_train_steps=1)
    assert first.code == 0, first.err
    again = train(output_dir=first.folder, resume_from_checkpoint="latest", max_train_steps=2, learning_enabled="false")
    assert again.code == 2
    assert "is of another run: objective was 'learning', is 'flow matching'" in again.err


def test_without_one_it_is_flow_matching(train, register):
    register(Agreeing)
    result = train(agreeing_enabled="false", max_train_steps=1)
    assert "objective: flow matching\n" in result.out
    run = json.loads((result.folder / "run.json").read_text())
    assert (run["objective"], "agreeing_gap" in run["metrics"]) == ("flow matching", False)


def test_two_are_refused_at_the_start(train, register):
    register(Agreeing)
    register(Other)
    result = train(agreeing_enabled="true", other_enabled="true")
    assert result.code == 2
    assert "objectives agreeing and other are enabled, and each would replace the main loss" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not result.folder.exists()
