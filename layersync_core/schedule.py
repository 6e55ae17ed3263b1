"""The weight of a term over a run, counted in optimiser steps."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then cosine decay to 0, and a hard stop; a value of 0 switches each off.

    Args:
        warmup_steps: Steps over which the factor rises from 0 to 1.
        decay_steps: Steps after the warm-up over which the factor falls to 0.
        cutoff_step: First step without the term.
    """

    warmup_steps: int = 0
    decay_steps: int = 0
    cutoff_step: int = 0

    def active(self, step: int) -> bool:
        """Return whether the term still has, or will have, a weight; False also stops the capture."""
        ended = self.decay_steps and step >= self.warmup_steps + self.decay_steps
        return not ended and not (self.cutoff_step and step >= self.cutoff_step)

    def factor(self, step: int) -> float:
        """Return the multiplier of the weight at a step, 0 to 1."""
        if not self.active(step):
            return 0.0
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.decay_steps:
            return 0.5 * (1.0 + math.cos(math.pi * (step - self.warmup_steps) / self.decay_steps))
        return 1.0
