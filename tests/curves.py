"""What a training program logged, read from where its tracker put it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

Curve = list[tuple[int, float]]
"""(step, value) pairs in logging order; under gradient accumulation a step is logged more than once."""


def read_curves(folder: Path) -> dict[str, Curve]:
    """Read tensorboard's event files below a folder, and the lines of the stub of wandb."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves: dict[str, Curve] = defaultdict(list)
    for path in folder.glob("**/events.out.tfevents.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            curves[tag] += [(event.step, event.value) for event in events.Scalars(tag)]
    for path in folder.glob("**/wandb.jsonl"):
        for line in path.read_text().splitlines():
            values = json.loads(line)
            step = values.pop("step")
            for tag, value in values.items():
                curves[tag].append((step, value))
    return curves


def check_term(curves: dict[str, Curve], steps: int) -> None:
    """Check that every step logged the term that was asked for, of weight 0.5."""
    loss, similarity = curves["layersync_loss"], curves["layersync_similarity"]
    assert len({step for step, _ in loss}) >= steps
    assert [step for step, _ in loss] == [step for step, _ in similarity]
    assert [value for _, value in loss] == pytest.approx([-0.5 * value for _, value in similarity], rel=1e-6)
    assert all(0 < abs(value) < 1 for _, value in similarity)
