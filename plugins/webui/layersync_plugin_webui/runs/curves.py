"""The curves of a run; each reading continues where the last one ended."""

from __future__ import annotations

import json
import math
import os
import threading
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layersync_core import metric_rank, printable
from layersync_plugin_webui.runs.events import Scalar, scalars, split
from layersync_plugin_webui.runs.files import read_part, walk
from layersync_plugin_webui.runs.finding import EVENTS, METRICS, Run

_PIECE = 4 * 1024 * 1024
_PIECES = 8  # pieces of a file in one reading; the next reading continues
_POINTS = 20_000
_SENT = 1_000
_TAGS = 200
_LONGEST = 200  # characters of a tag
_LATEST = 1e11  # seconds since 1970; larger numbers are not times
_RUNS = 200


@dataclass
class Curve:
    """One metric: rising steps, the time of each in seconds since 1970 or None, and its values."""

    steps: list[int] = field(default_factory=list)
    times: list[float | None] = field(default_factory=list)
    values: list[float | None] = field(default_factory=list)

    def add(self, step: int, time: float | None, value: float) -> None:
        """Add a point; one at an earlier step replaces all points from there on, as when a run was resumed."""
        if self.steps and step <= self.steps[-1]:
            kept = bisect_left(self.steps, step)
            del self.steps[kept:], self.times[kept:], self.values[kept:]
        self.steps.append(step)
        self.times.append(time)
        self.values.append(value if math.isfinite(value) else None)
        if len(self.steps) > _POINTS:
            del self.steps[1:-1:2], self.times[1:-1:2], self.values[1:-1:2]

    def sent(self, began: float | None) -> dict[str, Any]:
        """Return it as the page gets it: thinned but with the last point, and with minutes since ``began``."""
        every = -(-len(self.steps) // _SENT)
        chosen = [*range(len(self.steps) - 1, -1, -max(1, every))][::-1]
        minutes = [
            None if began is None or (time := self.times[place]) is None else round((time - began) / 60, 4)
            for place in chosen
        ]
        return {
            "steps": [self.steps[place] for place in chosen],
            "minutes": minutes,
            "values": [self.values[place] for place in chosen],
        }


class _Source:
    """A growing file; ``where`` are the curves that it adds to."""

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where
        self._offset, self._size, self._file = 0, 0, -1

    def points(self) -> list[Scalar]:
        """Return what was added.

        Raises:
            OSError: It cannot be read.
            _AnewError: The file was replaced or has become shorter.
        """
        found: list[Scalar] = []
        for _ in range(_PIECES):
            data, about = read_part(self.path, self._offset, _PIECE)
            if self._file not in (-1, about.st_ino) or about.st_size < self._size:
                raise _AnewError
            self._file, self._size = about.st_ino, about.st_size
            points, used = self._read(data)
            found += points
            self._offset += used
            if not used or self._offset >= about.st_size:
                break
        return found

    def _read(self, data: bytes) -> tuple[list[Scalar], int]:
        raise NotImplementedError


class _AnewError(Exception):
    """A file is not the one that was read before."""


class _Events(_Source):
    def _read(self, data: bytes) -> tuple[list[Scalar], int]:
        records, used = split(data)
        return [scalar for record in records for scalar in scalars(record)], used


class _Rows(_Source):
    def _read(self, data: bytes) -> tuple[list[Scalar], int]:
        end = data.rfind(b"\n") + 1
        if not end and len(data) >= _PIECE:  # LayerSync writes no such long lines
            return [], len(data)
        found = []
        for line in data[:end].splitlines():
            try:
                row = json.loads(line)
                step = int(row.pop("step"))
                time = row.pop("time", None)
                found += [
                    Scalar(str(tag), step, math.nan if time is None else float(time), float(value))
                    for tag, value in row.items()
                ]
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
                continue  # a torn line, or one that isn't LayerSync's
        return found, end


class Curves:
    """The curves of one run.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._sources: dict[str, _Source] = {}
        self._curves: dict[tuple[str, str], Curve] = {}

    def read(self) -> dict[str, Curve]:
        """Return the curves by name, the most important ones first."""
        with self._lock:
            try:
                self._read_on()
            except _AnewError:
                self._forget()
                self._read_on()
            return self._named()

    def _read_on(self) -> None:
        for entry in walk(self._folder, 4):
            if entry.path not in self._sources and (kind := _kind(entry.name)):
                place = os.path.relpath(os.path.dirname(entry.path), self._folder)
                self._sources[entry.path] = kind(Path(entry.path), place)
        for path in sorted(self._sources, key=os.path.basename):  # the name of an event file has its time
            source = self._sources[path]
            try:
                points = source.points()
            except OSError:
                if not os.path.lexists(path):
                    raise _AnewError from None
                continue
            for tag, step, time, value in points:
                key = (printable(source.where), printable(tag[:_LONGEST]))
                if key not in self._curves:
                    if len(self._curves) >= _TAGS:
                        continue
                    self._curves[key] = Curve()
                self._curves[key].add(step, time if 0 < time < _LATEST else None, value)

    def _named(self) -> dict[str, Curve]:
        tags = [tag for _, tag in self._curves]
        named = {
            tag if tags.count(tag) == 1 else f"{tag} ({where})": curve for (where, tag), curve in self._curves.items()
        }
        return {name: named[name] for name in sorted(named, key=metric_rank)}


def _kind(name: str) -> type[_Source] | None:
    if name == METRICS:
        return _Rows
    return _Events if name.startswith(EVENTS) else None


class Store:
    """The curves of the runs that were viewed most recently."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Curves] = OrderedDict()

    def of(self, run: Run) -> dict[str, Curve]:
        """Return the curves of a run by name."""
        with self._lock:
            curves = self._kept.pop(run.id, None) or Curves(run.folder)
            self._kept[run.id] = curves
            while len(self._kept) > _RUNS:
                self._kept.popitem(last=False)
        return curves.read()


def beginning(curves: dict[str, Curve]) -> float | None:
    """Return the time of the first point of a run; None if no point has one."""
    return min((time for curve in curves.values() for time in curve.times[:1] if time is not None), default=None)
