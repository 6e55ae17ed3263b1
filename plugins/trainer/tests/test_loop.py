from __future__ import annotations

from collections import Counter

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from torch.utils._python_dispatch import TorchDispatchMode

from layersync_core import attach
from layersync_plugin_trainer import arm, data, objective
from layersync_plugin_trainer.config import TrainerConfig
from layersync_plugin_trainer.feeding import Feed
from layersync_plugin_trainer.models import find_source

PAIR = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 5}


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[func.name()] += 1
        return func(*args, **(kwargs or {}))


def make(settings=PAIR, forwards=1, batch=4, **more):
    config = TrainerConfig(train_batch_size=batch, gradient_accumulation_steps=forwards, **more)
    accelerator = Accelerator(
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=forwards, sync_with_dataloader=False),
        step_scheduler_with_optimizer=False,
        mixed_precision=config.mixed_precision,
    )
    source = find_source(config.model, config.family)
    set_seed(0)
    model = source.build(config)
    feed = Feed(source.tiny, model)
    sync = attach(model, settings)
    trainer = arm.prepare(accelerator, model, sync, feed, config)
    batches = objective.Batches(data.load("image", (1, 8, 8)), 0, batch, forwards, null_label=feed.null_label)
    return trainer, batches


@pytest.mark.parametrize(
    "more", [{}, {"forwards": 2}, {"gradient_checkpointing": True}, {"rank": 2}, {"mixed_precision": "bf16"}]
)
def test_a_step_never_waits_for_the_device(more):
    trainer, batches = make({**PAIR, "layersync_preset": "lora"}, **more)
    trainer.step(batches.of_step(0))
    with Counting() as counting:
        for step in (1, 2):
            trainer.step(batches.of_step(step))
    assert counting.calls["aten::mm"] + counting.calls["aten::addmm"] > 0  # the mode saw the step
    assert counting.calls["aten::_local_scalar_dense"] == 0
    with Counting() as counting:
        metrics = trainer.read_metrics()
    assert set(metrics) == {"loss", "layersync_loss", "layersync_similarity"}
    assert counting.calls["aten::_local_scalar_dense"] <= len(metrics)


def gradients(**more):
    trainer, batches = make(max_grad_norm=1e9, **more)
    seen = {}
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda *_: seen.update({i: p.grad.clone() for i, p in enumerate(trainer.parameters)})
    )
    trainer.step(batches.of_step(0))
    return seen, trainer.read_metrics()


def test_accumulation_equals_a_large_batch():
    large, large_metrics = gradients(batch=8)
    split, split_metrics = gradients(batch=2, forwards=4)
    assert large.keys() == split.keys()
    for index, gradient in large.items():
        torch.testing.assert_close(split[index], gradient, atol=1e-6, rtol=1e-4)
    assert split_metrics == pytest.approx(large_metrics, abs=1e-5)


def test_layersync_changes_the_gradients_and_off_means_off():
    with_it, _ = gradients()
    without, metrics = gradients(settings={"layersync_enabled": False})
    assert set(metrics) == {"loss"}
    assert any(not torch.allclose(with_it[index], without[index], atol=1e-6) for index in without)


def test_metrics_are_means_since_the_last_reading():
    trainer, batches = make()
    one_by_one = []
    for step in range(3):
        trainer.step(batches.of_step(step))
        one_by_one.append(trainer.read_metrics())
    trainer, batches = make()
    for step in range(3):
        trainer.step(batches.of_step(step))
    together = trainer.read_metrics()
    for name, value in together.items():
        assert value == pytest.approx(sum(row[name] for row in one_by_one) / 3, abs=1e-6)
    assert together["layersync_loss"] == pytest.approx(-0.2 * together["layersync_similarity"], abs=1e-6)


def test_the_loss_shown_is_only_the_main_loss():
    trainer, batches = make()
    trainer.step(batches.of_step(0))
    strong, more_batches = make(settings={**PAIR, "layersync_lambda": 50.0})
    strong.step(more_batches.of_step(0))
    assert trainer.read_metrics()["loss"] == pytest.approx(strong.read_metrics()["loss"], abs=1e-6)


def test_a_schedule_counts_optimiser_steps_under_accumulation():
    trainer, batches = make(settings={**PAIR, "layersync_cutoff_step": 2}, forwards=2)
    seen = []
    for step in range(3):
        trainer.step(batches.of_step(step))
        seen.append(set(trainer.read_metrics()))
    assert seen == [{"loss", "layersync_loss", "layersync_similarity"}] * 2 + [{"loss"}]
