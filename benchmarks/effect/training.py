"""One arm of one task at one seed, built from the reference trainer's own parts."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.effect.arms import EMA, EVERY_ARM, Arm, Job, Scale, between
from benchmarks.effect.depth import blocks_of, left_out
from benchmarks.effect.measures import Exam
from benchmarks.effect.results import Mark, Real, Record, machine
from benchmarks.effect.tasks import EVERY_TASK
from layersync_core import HiddenStateBuffer, attach, get_adapter, only_forward
from layersync_core.protocol import Adapter
from layersync_plugin_trainer.arm import prepare
from layersync_plugin_trainer.config import TrainerConfig
from layersync_plugin_trainer.data import generator
from layersync_plugin_trainer.feeding import Feed
from layersync_plugin_trainer.models import Source
from layersync_plugin_trainer.objective import Batches

LEARNING_RATE = 1e-3


class BothWays:
    """LayerSync without the stop-gradient: the teacher is pulled towards the student as well.

    LayerSync has no setting for it, so this is the term written out by hand; it replaces an attachment.
    """

    def __init__(self, model: nn.Module, adapter: Adapter, pair: tuple[int, int], weight: float) -> None:
        self._layers = [block - 1 for block in pair]
        self._weight = weight
        self._buffer = HiddenStateBuffer(self._layers)
        self._capture = adapter.capture(model, self._layers, self._buffer)

    def apply(self, loss: Tensor, *, step: int) -> Tensor:
        """Return the main loss plus the term, and drop the states."""
        self._capture.collect(only_forward(self._capture))
        student, teacher = (self._buffer[self._buffer.key(layer)].float() for layer in self._layers)
        total = loss - self._weight * F.cosine_similarity(student, teacher, dim=-1).mean()
        self._capture.discard()
        return total

    def metrics(self) -> dict[str, Tensor]:
        """Return no metrics."""
        return {}

    def modules(self) -> nn.ModuleDict:
        """Return no trainable parts."""
        return nn.ModuleDict()

    def remove(self) -> None:
        """Remove the hooks."""
        self._capture.remove()


@cache
def exam_of(name: str, scale: Scale, device: torch.device) -> Exam:
    """Return a task's exam, the same object throughout a process."""
    task = EVERY_TASK[name]
    data = task.data()
    if scale.data:
        parts = ("samples", "labels", "held_out", "held_out_labels")
        data = replace(data, **{part: getattr(data, part)[: scale.data] for part in parts})
    return Exam(task, data, get_adapter(task.family), Feed(task, task.tiny_model()), scale, device)


def train(job: Job, scale: Scale) -> Record:
    """Train one arm and return its raw results; a training that diverges ends early and records the step.

    Arms of the same task and seed start from the same weights and see the same samples, noise, times and classes.
    """
    # Given as a plugin, so that no environment variable can change it.
    accumulation = GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False)
    precision = EVERY_TASK[job.task].precision
    accelerator = Accelerator(mixed_precision=precision, gradient_accumulation_plugin=accumulation)
    arm, exam = EVERY_ARM[job.arm], exam_of(job.task, scale, accelerator.device)
    config = TrainerConfig.model_validate(
        {
            "max_train_steps": job.steps,
            "train_batch_size": scale.batch_size or exam.task.batch_size,
            "learning_rate": LEARNING_RATE,
            "seed": job.seed,
        }
    )
    began = time.perf_counter()
    set_seed(job.seed)
    model = Source(exam.task.family, exam.adapter, exam.task).build(config).to(accelerator.device)
    pair = arm.pair_of(job.seed, exam.task.blocks)
    if arm.absent:
        del blocks_of(model)[pair[0] : pair[1]]
    # Copied before anything is attached, so that the copy is bare.
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA)).eval()
    sync = _attach(model, exam.adapter, arm, pair, job.steps)
    trainer = prepare(accelerator, model, sync, exam.feed, config)
    batches = Batches(exam.data, job.seed, config.batch_size, null_label=exam.feed.null_label)
    points = set(job.points(scale))
    curve: list[tuple[int, float]] = []
    marks: dict[int, Mark] = {}
    diverged = None
    for step in range(1, job.steps + 1):
        with left_out(model, _dropped(arm, pair, job.seed, step)):
            trainer.step(batches.of_step(step - 1))
        averaged.update_parameters(model)
        if step not in points:
            continue
        held_out = exam.held_out(averaged.module)
        try:
            if not math.isfinite(held_out + trainer.read_metrics()["loss"]):
                raise FloatingPointError("the loss is not finite")
            if step in (scale.short, job.steps):
                marks[step] = exam.examine(averaged.module, job.seed, None if arm.absent else between(pair))
        except FloatingPointError as error:
            print(f"{job.key}: {error} at step {step}, the training ends", flush=True)
            diverged = step
            break
        curve.append((step, held_out))
        print(f"{job.key}: step {step} of {job.steps}, held-out loss {held_out:.4f}", flush=True)
    sync.remove()
    judge = exam.judge
    return Record(
        task=job.task,
        arm=job.arm,
        seed=job.seed,
        steps=job.steps,
        pair=pair,
        weight=arm.weight,
        curve=curve,
        marks=marks,
        diverged=diverged,
        call=exam.call(averaged.module) if job.is_called and diverged is None else None,
        real=Real(accuracy=judge.accuracy_on_real, frechet=judge.distance_of_real),
        seconds=time.perf_counter() - began,
        machine=machine(accelerator.device),
    )


def _dropped(arm: Arm, pair: tuple[int, int], seed: int, step: int) -> list[int]:
    """Return the blocks that a step of training leaves out."""
    if not arm.dropped:
        return []
    first, last = between(pair)
    places = range(first, last + 1)
    drawn = torch.rand(len(places), generator=generator(seed, "dropped", step))
    return [block for block, number in zip(places, drawn.tolist(), strict=True) if number < arm.dropped]


def _attach(model: nn.Module, adapter: Adapter, arm: Arm, pair: tuple[int, int], steps: int) -> Any:
    if not arm.stop_gradient:
        return BothWays(model, adapter, pair, arm.weight)
    if not arm.weight:
        return attach(model, {"layersync_enabled": False})
    settings: Mapping[str, Any] = {
        "layersync_enabled": True,
        "layersync_student_block": pair[0],
        "layersync_teacher_block": pair[1],
        "layersync_lambda": arm.weight,
        # 0 would mean never.
        "layersync_cutoff_step": max(1, int(steps * arm.cutoff)) if arm.cutoff else 0,
    }
    return attach(model, settings, family=adapter.family)
