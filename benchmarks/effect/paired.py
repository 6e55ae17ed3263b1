"""Paired differences from the vanilla arm of the same seed, with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Curve = Sequence[Sequence[float]]
"""Points (optimiser step, held-out loss)."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 % interval by Student's t; infinite with a single seed."""

    mean: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values and its interval."""
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, -math.inf, math.inf)
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return Estimate(mean, mean - half, mean + half)


def estimate_ratio(values: Sequence[float]) -> Estimate:
    """Return the geometric mean of positive ratios and its interval."""
    log = estimate([math.log(value) for value in values])
    with np.errstate(over="ignore"):
        return Estimate(*(float(np.exp(value)) for value in (log.mean, log.low, log.high)))


def speed_up(vanilla: Curve, arm: Curve) -> float:
    """Return how many times as many steps vanilla needs as the arm to the lowest held-out loss that both reach.

    Above 1 the arm is faster: it reaches vanilla's best loss in fewer steps than vanilla. Below 1 vanilla reaches the
    arm's best loss in fewer. Curves are interpolated linearly between points.
    """
    common = max(min(loss for _, loss in curve) for curve in (vanilla, arm))
    return steps_to(vanilla, common) / steps_to(arm, common)


def speed_up_half_way(vanilla: Curve, arm: Curve) -> float:
    """Return the same for the held-out loss that vanilla has after half of its steps, where curves are steeper.

    An arm that never gets there counts as getting there at its last point.
    """
    steps, losses = zip(*vanilla, strict=True)
    target = float(np.interp(vanilla[-1][0] / 2, steps, losses))
    return steps_to(vanilla, target) / min(steps_to(arm, target), arm[-1][0])


def steps_to(curve: Curve, loss: float) -> float:
    """Return the optimiser step at which a curve first is at or below a loss; infinite if never."""
    before: tuple[float, float] | None = None
    for step, value in curve:
        if value <= loss:
            if before is None:
                return step
            return before[0] + (step - before[0]) * (before[1] - loss) / (before[1] - value)
        before = (step, value)
    return math.inf
