"""The contents of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from typing_extensions import Self

MOST_POINTS = 400
"""The most points of a curve that are drawn."""
_LAST_STEP = 2**63

_FIRST = ("loss", "train_loss", "layersync_loss", "layersync_similarity", "layersync_grad_ratio")
_LAST = ("lr", "learning_rate")


class Point(NamedTuple):
    """A value of a metric at an optimiser step; None where it wasn't finite."""

    step: int
    value: float | None


class Summary(NamedTuple):
    """The key values of a curve."""

    first: Point
    last: Point
    least: Point
    greatest: Point


@dataclass(frozen=True)
class Series:
    """One metric of one run, in the order of the steps."""

    points: Sequence[Point]

    @classmethod
    def of(cls, points: Iterable[tuple[int, float | None]]) -> Self:
        """Return a curve from logged points; values that aren't finite become None."""
        return cls(
            [
                Point(step, value if value is not None and math.isfinite(value) else None)
                for step, value in points
                if abs(step) < _LAST_STEP
            ]
        )

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> dict[str, Self]:
        """Return the curves in rows of metrics, each with its ``step``."""
        found: dict[str, list[tuple[int, float | None]]] = {}
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    found.setdefault(name, []).append((int(row["step"]), value))
        return {name: cls.of(points) for name, points in found.items()}

    def thinned(self, most: int = MOST_POINTS) -> Sequence[Point]:
        """Return a bounded number of its points, always including the last."""
        every = max(1, -(-len(self.points) // most))
        return self.points[::-1][::every][::-1]

    def summary(self) -> Summary | None:
        """Return its key values; None if it has no finite value."""
        known = [point for point in self.points if point.value is not None]
        if not known:
            return None

        def value(point: Point) -> float:
            return point.value or 0.0

        return Summary(known[0], known[-1], min(known, key=value), max(known, key=value))


@dataclass(frozen=True)
class Arm:
    """A run, or one of two runs that are compared.

    Attributes:
        name: Its name; empty if there is only one.
        curves: Its metrics by name.
    """

    name: str
    curves: Mapping[str, Series]


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        title: Its file name, or what it shows.
        kind: Its media type.
        data: The content of the file.
        step: The step at which it was drawn.
    """

    title: str
    kind: str
    data: bytes
    step: int | None = None


@dataclass(frozen=True)
class Report:
    """What is known about a run.

    Attributes:
        name: Name of the run.
        state: How it ended, in the reader's language.
        record: The content of its ``run.json``, which may be anything; for a comparison, that of the arm with
            LayerSync.
        arms: Its curves.
        pictures: Its samples.
        left_out: Number of pictures for which there was no room.
        comparison: The content of the trainer's ``compare.json`` about two arms, which may be anything.
        notes: Further facts about what was trained, one line each.
        began: When it began, in seconds since 1970.
        seconds: How long it took, or has taken.
        total_steps: How many steps were planned.
    """

    name: str
    state: str
    record: Mapping[str, Any] = field(default_factory=dict)
    arms: Sequence[Arm] = ()
    pictures: Sequence[Picture] = ()
    left_out: int = 0
    comparison: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    began: float | None = None
    seconds: float | None = None
    total_steps: int | None = None

    @property
    def step(self) -> int | None:
        """The last known step."""
        steps = [curve.points[-1].step for arm in self.arms for curve in arm.curves.values() if curve.points]
        return max(steps, default=None)


def metric_rank(name: str) -> tuple[int, str]:
    """Return a sort key for metrics: losses first, then LayerSync's and CREPA's, learning rates last."""
    plain = name.partition(" (")[0].rpartition("/")[2]
    if plain in _FIRST:
        return _FIRST.index(plain), name
    if plain.startswith(("layersync_", "crepa_")):
        return len(_FIRST), name
    return len(_FIRST) + (2 if plain in _LAST else 1), name
