"""The weight of CREPA's term over a run, counted in optimiser steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from layersync_core import ConfigError
from layersync_plugin_crepa.config import CrepaConfig


@dataclass(frozen=True)
class WeightSchedule:
    """Linear warm-up from 0 to the weight, then one of four ways to another weight, and a hard stop.

    Attributes:
        weight: Weight at the end of the warm-up.
        kind: constant, linear, cosine or polynomial.
        warmup_steps: Steps over which it rises from 0.
        end_step: Step at which ``end_weight`` is reached.
        end_weight: Weight from ``end_step`` on.
        power: Power of the polynomial.
        cutoff_step: First step without the term; 0: never.
    """

    weight: float
    kind: str = "constant"
    warmup_steps: int = 0
    end_step: int = 0
    end_weight: float = 0.0
    power: float = 1.0
    cutoff_step: int = 0

    @property
    def varies(self) -> bool:
        """Whether the weight depends on the step at all."""
        return self.kind != "constant" or bool(self.warmup_steps or self.cutoff_step)

    def active(self, step: int) -> bool:
        """Return whether the term still has, or will have, a weight; False stops the capture too."""
        decayed = self.kind != "constant" and self.end_weight == 0 and step >= self.end_step
        return not decayed and not (self.cutoff_step and step >= self.cutoff_step)

    def at(self, step: int) -> float:
        """Return the weight at a step."""
        if not self.active(step):
            return 0.0
        if step < self.warmup_steps:
            return self.weight * step / self.warmup_steps
        if self.kind == "constant":
            return self.weight
        progress = min((step - self.warmup_steps) / (self.end_step - self.warmup_steps), 1.0)
        if self.kind == "cosine":
            left = 0.5 * (1 + math.cos(math.pi * progress))
        else:
            left = math.pow(1 - progress, self.power if self.kind == "polynomial" else 1)
        return self.end_weight + (self.weight - self.end_weight) * left


def schedule_of(config: CrepaConfig, run_steps: Any) -> WeightSchedule:
    """Return the schedule for the settings.

    Args:
        config: Enabled settings.
        run_steps: The run's number of optimiser steps, as the user gave it; None if it is not known.

    Raises:
        ConfigError: The decay ends with a run of unknown length, or before the warm-up does.
    """
    end = config.crepa_decay_steps
    if config.crepa_scheduler != "constant" and not end:
        end = _whole(run_steps)
        if not end:
            raise ConfigError(
                f"crepa_scheduler {config.crepa_scheduler} decays until the run's last step, which is not known here; "
                "set crepa_decay_steps to the step at which it ends, or max_train_steps beside CREPA's keys"
            )
        if end <= config.crepa_warmup_steps:
            raise ConfigError(
                f"crepa_warmup_steps is {config.crepa_warmup_steps} and the run ends at step {end}, so nothing "
                f"is left for crepa_scheduler {config.crepa_scheduler}; shorten the warm-up"
            )
    return WeightSchedule(
        config.crepa_lambda,
        config.crepa_scheduler,
        config.crepa_warmup_steps,
        end,
        config.crepa_lambda_end,
        config.crepa_power,
        config.crepa_cutoff_step,
    )


def _whole(value: Any) -> int:
    try:
        return max(int(str(value)), 0)
    except ValueError:
        return 0
