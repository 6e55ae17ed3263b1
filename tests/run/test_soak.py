"""Two thousand steps in one process, in three trainings: what is held does not grow."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models import build
from tests.run.inside import main_loss, switched_on

TRAININGS = (("dit", 800), ("dit", 600), ("dit", 600))  # torch itself keeps a Wan that was compiled
EVERY = 100  # metrics wait for their fiftieth step
# An allocator keeps what it once had; keeping the graph of one of these models at each step would cost 200 MiB or more.
MIB = 24


@dataclass
class Held:
    """What the process holds."""

    tensors: int
    files: int
    memory: float

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        # Without those that torch has traced a graph with, which hold no memory.
        tensors = sum(type(item) in (Tensor, nn.Parameter) for item in gc.get_objects())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(tensors, len(os.listdir("/proc/self/fd")), pages * os.sysconf("SC_PAGESIZE") / 2**20)


def train(family: str, steps: int, seen: Callable[[Held], Any]) -> None:
    """Train a new model, the second half of the steps compiled."""
    model, inputs = build(family)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    called: Any = model
    for number in range(steps):
        if number == steps // 2:
            called = torch.compile(model, backend="aot_eager")
        if number % 10 == 0:
            with torch.no_grad():
                model(**inputs)
        optimiser.zero_grad()
        (main_loss(called(**inputs)) * (1, 0.5, 0, -1)[number % 4]).backward()
        optimiser.step()
        if number % EVERY == EVERY - 1:
            seen(Held.now())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory and files are read from /proc")
def test_what_is_held_does_not_grow(tmp_path: Path) -> None:
    torch.compiler.reset()  # how often tests before this one had the same code compiled is none of its concern
    within: list[list[Held]] = []
    after: list[Held] = []
    with switched_on(tmp_path) as launch:
        training = launch()
        for family, steps in TRAININGS:
            within.append([])
            train(family, steps, within[-1].append)
            torch._dynamo.reset()
            after.append(Held.now())
        assert [course.steps for course in training.courses.all] == [steps for _, steps in TRAININGS]
    for held in within:
        half = len(held) // 2
        for part in (held[:half], held[half:]):
            assert len({one.tensors for one in part}) == 1, part
            assert len({one.files for one in part}) == 1, part
    first, *_, last = after
    # A training leaves its similarity behind, for the last line: the first figure and the latest.
    assert last.tensors - first.tensors <= 2 * (len(TRAININGS) - 1), after
    assert last.files == first.files, after
    assert last.memory - first.memory < MIB, after
