"""The arms of the comparison, and which of them a run trains at which seeds."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.effect.tasks import BLOCKS, DEEP_TASKS, EVERY_TASK, GPU_TASK, MAIN_SETTING, REPEATED_SETTING, SETTINGS

PAPER = 4, 8
"""The pair of the paper's rule at the depth of most tasks; blocks count from 1."""
VANILLA, PAIR, CUT_OFF = "vanilla", "pair", "cut-off"
EMA = 0.995
"""Decay of the averaged weights that are evaluated, a window of about 200 steps."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        title: Title in the table.
        pair: Student and teacher block of twelve, from 1; ``PAPER`` stands for the paper's rule at any depth, and None
            draws a pair for each seed.
        weight: The term's weight; 0 is vanilla.
        cutoff: Share of the training after which the term is off; 0: never.
        stop_gradient: Whether the teacher is detached, as in the paper.
        dropped: Probability with which each block between the pair, teacher included, is left out of a training step
            (stochastic depth, Huang et al., arXiv 1603.09382, without its rescaling).
        absent: Whether the model never has these blocks.
    """

    title: str
    pair: tuple[int, int] | None = PAPER
    weight: float = 0.2
    cutoff: float = 0.0
    stop_gradient: bool = True
    dropped: float = 0.0
    absent: bool = False

    def pair_of(self, seed: int, blocks: int = BLOCKS) -> tuple[int, int]:
        """Return the pair for a seed, in a model of some depth."""
        if self.pair == PAPER:
            return thirds(blocks)
        if self.pair is not None:
            return self.pair
        every = [(one, two) for two in range(2, BLOCKS + 1) for one in range(1, two) if (one, two) != PAPER]
        return random.Random(seed).choice(every)


def thirds(blocks: int) -> tuple[int, int]:
    """Return the blocks after a third and two thirds, from 1: the paper's 8 of 24 and 16 of 24."""
    return round(blocks / 3), round(2 * blocks / 3)


def between(pair: tuple[int, int]) -> tuple[int, int]:
    """Return the first and last of the blocks that the pair asks to change little: those after the student."""
    return pair[0] + 1, pair[1]


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
    CUT_OFF: Arm("cut off at a third", cutoff=1 / 3),
}
DEEP_ARMS: Mapping[str, Arm] = {
    VANILLA: ARMS[VANILLA],
    PAIR: Arm("the pair of the thirds, weight 0.2"),
    CUT_OFF: ARMS[CUT_OFF],
    "cut-off-late": Arm("cut off at two thirds", cutoff=2 / 3),
    "stochastic-depth": Arm("stochastic depth in its place", weight=0.0, dropped=0.5),
    "never-there": Arm("without these blocks from the start", weight=0.0, absent=True),
}
"""Those of the study of depth."""
EVERY_ARM: Mapping[str, Arm] = {**ARMS, **DEEP_ARMS}


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
    def is_quick(self) -> bool:
        """Whether the data are limited, so that the figures mean nothing."""
        return bool(self.data)

    @property
    def probe_rounds(self) -> int:
        """Largest number of Newton steps of a linear probe."""
        return 1 if self.is_quick else 100


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

    @property
    def is_called(self) -> bool:
        """Whether it is predicted from this training whether LayerSync helps."""
        return EVERY_TASK[self.task].called and self.arm == VANILLA and self.seed == 0

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


DEEP = Scale(steps=900, short=900, samples=500)
DEEP_QUICK = Scale(1, 1, 1, 1, every=1, evaluated=20, samples=24, euler_steps=2, data=60, batch_size=8)


def deep_plan(scale: Scale) -> list[Job]:
    """Return every training of the study of depth; where time is short, those at the end are left out.

    First vanilla and the pair at each depth, then the other arms depth by depth, then more seeds of the main rows.
    """
    sides, few, more = (VANILLA, PAIR), range(scale.short_seeds), range(scale.short_seeds, scale.seeds)
    tasks = ["digits-8"] if scale.is_quick else [*DEEP_TASKS]
    jobs = [Job(task, arm, seed, scale.steps) for seed in few for task in tasks for arm in sides]
    rest = [arm for arm in DEEP_ARMS if arm not in sides]
    jobs += [Job(task, arm, seed, scale.steps) for seed in few for task in tasks for arm in rest]
    return jobs + [Job(task, arm, seed, scale.steps) for seed in more for task in tasks for arm in sides]


SETTING_ARMS = VANILLA, PAIR, CUT_OFF
SETTING = Scale(steps=600, short=600, evaluated=600)
SETTING_QUICK = DEEP_QUICK


def settings_plan(scale: Scale) -> list[Job]:
    """Return every training on which the prediction is tested; where time is short, those at the end are left out.

    First vanilla everywhere, from which the predictions are made, then the other arms, then more seeds of the main row.
    """
    few, more = range(scale.short_seeds), range(scale.short_seeds, scale.seeds)
    tasks = ["glyphs-6", "discs-24"] if scale.is_quick else [*SETTINGS]
    jobs = [Job(task, VANILLA, seed, scale.steps) for seed in few for task in tasks]
    jobs += [Job(task, arm, seed, scale.steps) for seed in few for task in tasks for arm in (PAIR, CUT_OFF)]
    return jobs + [Job(MAIN_SETTING, arm, seed, scale.steps) for seed in more for arm in SETTING_ARMS]


def repetition_plan(scale: Scale) -> list[Job]:
    """Return vanilla and the pair in one of the settings, with as many seeds as it has, none of them used before."""
    seeds = range(scale.seeds, scale.seeds + scale.short_seeds)
    return [Job(REPEATED_SETTING, arm, seed, scale.steps) for seed in seeds for arm in (VANILLA, PAIR)]


GPU = Scale(steps=6000, short=6000, seeds=1, every=1000, evaluated=1000)
GPU_QUICK = DEEP_QUICK


def gpu_plan(scale: Scale) -> list[Job]:
    """Return the two trainings for a GPU."""
    return [Job(GPU_TASK, arm, seed, scale.steps) for seed in range(scale.seeds) for arm in (VANILLA, PAIR)]
