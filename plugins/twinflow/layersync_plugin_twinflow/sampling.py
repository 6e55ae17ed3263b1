"""Samples in few steps: at each step the model gets the time it should arrive at; without guidance."""

# Shapes: B batch

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from layersync_plugin_twinflow.loss import moved

Sampler = Literal["few", "mul", "any"]
"""The target time that the model gets: 0, the time itself, or the time of the next step."""


def target_of(sampler: Sampler, time: Tensor, after: Tensor) -> Tensor:
    """Return the target time of a step from ``time`` to ``after``."""
    return {"few": torch.zeros_like(time), "mul": time, "any": after}[sampler]


@torch.no_grad()
def few_steps(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor], noise: Tensor, steps: int, sampler: Sampler = "any"
) -> Tensor:
    """Go from noise (t = 1) to data (t = 0) in a few even steps.

    Args:
        velocity: F(x, t, t') of the trained model, with times (B,).
        noise: (B, *shape) standard normal.
        steps: Number of steps.
        sampler: The target time that the model gets.

    Returns:
        (B, *shape) samples.
    """
    x = noise
    for step in range(steps):
        time = noise.new_full((len(noise),), 1 - step / steps)
        after = noise.new_full((len(noise),), 1 - (step + 1) / steps)
        x = moved(x, velocity(x, time, target_of(sampler, time, after)).to(x.dtype), time, after)
    return x
