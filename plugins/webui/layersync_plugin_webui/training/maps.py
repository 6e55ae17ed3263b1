"""The similarity map: what ``layersync suggest`` measured for a model's blocks, cell by cell."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersync_plugin_webui.language import later
from layersync_plugin_webui.runs.files import read_part, walk

FILE = "suggest.json"
MEASURES = {
    "cka": later("Linear CKA"),
    "centered_cosine": later("Centred cosine"),
    "cosine": later("Cosine"),
    "gap": later("Linear probe, teacher minus student"),
}
CLASSES = 20
"""Colours, from light to dark."""

_LARGEST = 16 * 1024 * 1024
_DEPTH = 6
_MOST = 20_000


@dataclass(frozen=True)
class Measured:
    """A ``suggest.json`` that fits a model.

    Attributes:
        path: Where it is.
        when: When it was written, by this machine's clock.
        grids: For each measure, its mean over the noise levels for every two blocks.
        recommended: Pairs that it recommends, each with the reason.
        verdict: Its answer and the reason.
        fed: What the model was fed, if not the user's own data.
        forwards: How many forwards were measured.
    """

    path: Path
    when: float
    grids: Mapping[str, list[list[float | None]]]
    recommended: Sequence[tuple[int, int, str]]
    verdict: tuple[str, str]
    fed: str
    forwards: int


@dataclass(frozen=True)
class Cell:
    """Two blocks that may be paired."""

    student: int
    teacher: int
    value: float | None
    shade: int | None
    allowed: bool
    recommended: bool


def find(folder: Path, model_class: str, paths: Sequence[str]) -> list[Measured]:
    """Return the measurements below a folder for a model with these blocks, the latest first.

    Args:
        folder: The folder of runs.
        model_class: The model's class.
        paths: The paths of its blocks, in order.
    """
    found = [
        measured
        for entry in walk(folder, _DEPTH, _MOST)
        if entry.name == FILE and (measured := _read(Path(entry.path), model_class, paths))
    ]
    return sorted(found, key=lambda measured: -measured.when)


def _read(path: Path, model_class: str, paths: Sequence[str]) -> Measured | None:
    try:
        data, about = read_part(path, 0, _LARGEST)
        content = json.loads(data)
        if str(content["model"]).removeprefix("tiny ") != model_class or content["blocks"] != list(paths):
            return None
        grids = {name: grid for name in MEASURES if (grid := _mean(content.get(name) or [], len(paths)))}
        return Measured(
            path,
            about.st_mtime,
            grids,
            [(int(pair["student"]), int(pair["teacher"]), str(pair["reason"])) for pair in content["recommended"]],
            (str(content["verdict"]["answer"]), str(content["verdict"]["reason"])),
            str(content.get("fed") or ""),
            int(content.get("forwards") or 0),
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None  # another program's file of that name, or an incomplete one


def _mean(levels: Sequence[Any], size: int) -> list[list[float | None]]:
    """Return the mean of grids; empty if there are none. A cell that one of them lacks has no mean."""
    for grid in levels:
        if len(grid) != size or any(len(row) != size for row in grid):
            raise ValueError
    if not levels:
        return []
    return [[_of([grid[student][teacher] for grid in levels]) for teacher in range(size)] for student in range(size)]


def _of(values: Sequence[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known and all(map(math.isfinite, known)) else None


def rows(facts: Mapping[str, Any], measured: Measured | None, measure: str) -> list[list[Cell | None]]:
    """Return a row for each student: a cell for each deeper block that it may be paired with, None elsewhere.

    Args:
        facts: The facts about the model.
        measured: Its measurement, if there is one.
        measure: The measure to show.
    """
    blocks = facts["blocks"]
    grid = measured.grids.get(measure) if measured else None
    values = [value for row in grid or [] for value in row if value is not None]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    allowed = {tuple(pair) for pair in facts["allowed"]}
    recommended = {(pair[0], pair[1]) for pair in measured.recommended} if measured else set()
    return [
        [
            Cell(
                student["number"],
                teacher["number"],
                value := grid[student["number"] - 1][teacher["number"] - 1] if grid else None,
                None if value is None else _shade(value, low, high),
                (student["number"], teacher["number"]) in allowed,
                (student["number"], teacher["number"]) in recommended,
            )
            if teacher["number"] > student["number"] and _fit(student, teacher)
            else None
            for teacher in blocks
        ]
        for student in blocks
    ]


def _fit(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> bool:
    return bool((student["width"], student["stage"]) == (teacher["width"], teacher["stage"]))


def _shade(value: float, low: float, high: float) -> int:
    return min(int((value - low) / (high - low) * CLASSES), CLASSES - 1) if high > low else 0


def ends(measured: Measured, measure: str) -> tuple[float, float] | None:
    """Return the lowest and the highest value of a map; None if it has none."""
    values = [value for row in measured.grids.get(measure, []) for value in row if value is not None]
    return (min(values), max(values)) if values else None


def folder_of_next(runs: Path) -> Path:
    """Return where the next measurement is written."""
    return runs / "layersync-suggest" / time.strftime("%Y%m%d-%H%M%S")
