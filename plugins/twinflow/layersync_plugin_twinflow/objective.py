"""TwinFlow as the main loss of ``layersync train``."""

# Shapes: B batch

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from layersync_core import Batch, ConfigError, ObjectiveBase, Predict, Term
from layersync_plugin_twinflow.config import TwinFlowConfig
from layersync_plugin_twinflow.loss import Draws, Rule, twinflow_loss
from layersync_plugin_twinflow.sampling import few_steps
from layersync_plugin_twinflow.saving import load_weights, save
from layersync_plugin_twinflow.target_time import TargetTime
from layersync_plugin_twinflow.teacher import MovingAverage

STEPS = (1, 2, 4)
"""Samples are drawn in these numbers of steps, and in the number from the settings."""


class TwinFlow(ObjectiveBase):
    """Consistency with an EMA teacher's path, and the real velocity; with the adversarial loss, the fake path as well.

    Args:
        config: Enabled settings.
    """

    name = "twinflow"

    def __init__(self, config: TwinFlowConfig) -> None:
        self._config = config
        self._rule = Rule(
            config.twinflow_estimate_order,
            config.twinflow_enhanced_ratio,
            config.twinflow_delta_t,
            config.twinflow_target_clamp,
            config.twinflow_adversarial_enabled,
            config.twinflow_adversarial_weight,
            config.twinflow_rectify_weight,
        )
        self._continued: Path | None = None
        self.module: MovingAverage | None = None

    def begin(self, model: nn.Module, guided: bool) -> None:
        """Add the target time to the model, and start the moving average.

        Raises:
            ConfigError: The model cannot take a target time, or guidance is requested but the model has no null class.
        """
        config = self._config
        if not guided and config.twinflow_enhanced_ratio and "twinflow_enhanced_ratio" in config.model_fields_set:
            raise ConfigError(
                f"twinflow_enhanced_ratio has no effect: {type(model).__name__} has no null class here; leave it out"
            )
        self.time = TargetTime(model, config.twinflow_time_embedding, config.twinflow_adversarial_enabled)
        self._continued = load_weights(self.time, model)
        if config.ema:
            self.module = MovingAverage(model, config.twinflow_ema_decay)

    def describe(self) -> list[str]:
        """Return lines that say which target time the model gets where, and who the teacher is."""
        first, count = self.time.places[0].path, len(self.time.places)
        where = first if count == 1 else f"{first} and {count - 1} more"
        ema = f"moving average of the weights, decay {self._config.twinflow_ema_decay:g}"
        teacher = "the model itself" if self.module is None else ema
        continued = [f"twinflow goes on from {self._continued}"] if self._continued else []
        return [f"twinflow target time: {self.time.convention}, at {where}", f"twinflow teacher: {teacher}", *continued]

    def compute(self, predict: Predict, batch: Batch, step: int) -> Term:
        """Return the loss of a batch and its parts."""
        self.time.watched = True
        rule = self._rule
        draws = Draws(
            batch.uniform("target"),
            batch.normal("fake noise") if rule.adversarial else None,
            batch.uniform("fake time") if rule.adversarial else None,
        )

        def model_fn(x: Tensor, time: Tensor, target: Tensor, labels: Tensor) -> Tensor:
            with self.time.told(time, target):
                return predict(x, self.time.own_time(time), labels)

        def teacher_fn(x: Tensor, time: Tensor, target: Tensor, labels: Tensor) -> Tensor:
            with self._as_teacher():
                return model_fn(x, time, target, labels)

        loss, parts = twinflow_loss(
            model_fn,
            batch.clean,
            batch.noise,
            batch.time,
            batch.labels,
            rule=rule,
            teacher_fn=teacher_fn,
            unconditional=batch.unconditional,
            draws=draws,
            paused=predict.paused,
        )
        return Term(loss, parts)

    @contextmanager
    def _as_teacher(self) -> Iterator[None]:
        if self.module is None:
            yield
        else:
            with self.module.in_place():
                yield

    def after_step(self, step: int) -> None:
        """Update the moving average with the new weights."""
        self.time.watched = False
        if self.module is not None:
            self.module.update()

    def draw(self, predict: Predict, noise: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return samples in 1, 2, 4 and the settings' number of steps, from the same noise and without guidance."""

        def velocity(x: Tensor, time: Tensor, target: Tensor) -> Tensor:
            with self.time.told(time, target):
                return predict(x, time, labels).float()

        drawn = {}
        for steps in sorted({*STEPS, self._config.twinflow_target_step_count}):
            title = f"TwinFlow, {steps} step{'s' if steps > 1 else ''}"
            drawn[title] = few_steps(velocity, noise, steps, self._config.twinflow_sampler)
        return drawn

    def export(self, model: Any, folder: Path) -> None:
        """Write the target time's weights beside the model's, and remove them from the model."""
        save(self.time, folder, self._config.twinflow_sampler)
        self.time.remove(model)
