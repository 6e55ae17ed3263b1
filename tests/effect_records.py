"""Records of trainings that nobody trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from benchmarks.effect.arms import ARMS, QUICK
from benchmarks.effect.results import Mark, Real, Record

ROOT = Path(__file__).parents[1]
MANY = dataclasses.replace(QUICK, seeds=8, short_seeds=8)


def record(arm: str, seed: int, probe: float, steps: int = 4, diverged: int | None = None) -> Record:
    mark = Mark(
        held_out=1.0 - probe,
        probe={"0.2": [probe] * 12, "0.5": [probe / 2] * 12},
        cka=np.full((12, 12), probe).tolist(),
        frechet=2.0,
        accuracy=None,
    )
    seen = [step for step in (2, 4) if step <= steps and step < (diverged or steps + 1)]
    return Record(
        task="digits",
        arm=arm,
        seed=seed,
        steps=steps,
        pair=ARMS[arm].pair_of(seed),
        weight=ARMS[arm].weight,
        curve=[(step, (1.0 - probe) / step) for step in seen],
        marks=dict.fromkeys(seen, mark),
        diverged=diverged,
        real=Real(accuracy=0.97, frechet=0.5),
        seconds=1.0,
        machine={},
    )
