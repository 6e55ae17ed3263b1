"""The arms of the comparison, and which of them a run trains at which seeds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.effect.tasks import BLOCKS

PAPER = 4, 8
"""The pair of the paper's rule at this depth; blocks count from 1."""
VANILLA, PAIR = "vanilla", "pair"
EMA = 0.995
"""Decay of the averaged weights that are evaluated, a window of about 200 steps."""
PROBED_TIMES = 0.2, 0.5
"""Shares of noise at which the blocks are probed: little noise, and half noise. CKA is measured at the first."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        title: Title in the table.
        pair: Student and teacher block, from 1; None draws a pair for each seed.
        weight: The term's weight; 0 is vanilla.
        cutoff: Share of the training after which the term is off; 0: never.
        stop_gradient: Whether the teacher is detached, as in the paper.
    """

    title: str
    pair: tuple[int, int] | None = PAPER
    weight: float = 0.2
    cutoff: float = 0.0
    stop_gradient: bool = True

    def pair_of(self, seed: int) -> tuple[int, int]:
        """Return the pair for a seed."""
        if self.pair is not None:
            return self.pair
        every = [(one, two) for two in range(2, BLOCKS + 1) for one in range(1, two) if (one, two) != PAPER]
        return random.Random(seed).choice(every)


ARMS: Mapping[str, Arm] = {
    VANILLA: Arm("vanilla", weight=0.0),
    PAIR: Arm(f"pair {PAPER[0]} → {PAPER[1]}, weight 0.2"),
    "weight-0.05": Arm("weight 0.05", weight=0.05),
    "weight-0.5": Arm("weight 0.5", weight=0.5),
    "last-fifth": Arm("pair in the last fifth, 10 → 12", pair=(10, 12)),
    "adjacent": Arm("adjacent blocks, 4 → 5", pair=(4, 5)),
    "random": Arm("a random deeper teacher, another for each seed", pair=None),
    "swapped": Arm("student and teacher swapped, 8 → 4", pair=(8, 4)),
    "no-stop-gradient": Arm("no stop-gradient on the teacher", stop_gradient=False),
    "self": Arm("a block with itself, 4 → 4", pair=(4, 4)),
    "cut-off": Arm("cut off at a third", cutoff=1 / 3),
}


@dataclass(frozen=True)
class Scale:
    """How much is trained and measured.

    Attributes:
        steps: Optimiser steps of the main comparison.
        short: Steps of the ablations and of the other tasks; the main arms are also measured at this step.
        seeds: Seeds of the main comparison.
        short_seeds: Seeds of the others.
        every: Steps between two points of the curve of the held-out loss.
        evaluated: Least number of noisy samples in the held-out loss.
        samples: Samples drawn from a trained model.
        euler_steps: Steps of the sampler.
        data: Largest number of training samples, and of held-out ones; 0: all.
        batch_size: Replaces the task's batch size; 0: the task's own.
    """

    steps: int = 3000
    short: int = 1000
    seeds: int = 5
    short_seeds: int = 3
    every: int = 100
    evaluated: int = 750
    samples: int = 1000
    euler_steps: int = 25
    data: int = 0
    batch_size: int = 0

    @property
    def probe_rounds(self) -> int:
        """Largest number of Newton steps of a linear probe; few with limited data, where the figures mean nothing."""
        return 1 if self.data else 100


FULL = Scale()
QUICK = Scale(4, 2, 2, 1, every=2, evaluated=20, samples=24, euler_steps=2, data=60, batch_size=8)


@dataclass(frozen=True)
class Job:
    """One training: ``key`` names it in the results."""

    task: str
    arm: str
    seed: int
    steps: int

    @property
    def key(self) -> str:
        """Task, arm and seed."""
        return f"{self.task}/{self.arm}/{self.seed}"

    def points(self, scale: Scale, end: int | None = None) -> list[int]:
        """Return the steps after which the held-out loss is measured, up to `end` if it is given."""
        every = [step for step in range(1, self.steps + 1) if step % scale.every == 0 or step == self.steps]
        return [step for step in every if end is None or step < end]


def plan(scale: Scale) -> list[Job]:
    """Return every training: the main comparison, its ablations, the other data; each seed by seed."""
    sides = VANILLA, PAIR
    main = [Job("digits", arm, seed, scale.steps) for seed in range(scale.seeds) for arm in sides]
    short = range(scale.short_seeds)
    ablations = [Job("digits", arm, seed, scale.short) for seed in short for arm in ARMS if arm not in sides]
    others = [Job(task, arm, seed, scale.short) for task in ("faces", "shapes") for seed in short for arm in sides]
    return main + ablations + others
