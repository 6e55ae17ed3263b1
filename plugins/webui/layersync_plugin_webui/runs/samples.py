"""Pictures that a run drew, by step."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from layersync_core import printable
from layersync_plugin_webui.runs.files import walk

KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif"}
"""Formats that a browser shows and that cannot contain active content; SVG can."""

LARGEST = 64 * 1024 * 1024

_STEP = re.compile(r"(?:^|[^a-z])(?:step|checkpoint|iter|global)s?[_\-= ]*(\d+)|^(\d+)(?=[_\-.])", re.IGNORECASE)
_OURS = ("samples.png", "compare_samples.png")
_FOLDERS = ("samples", "sample", "validation_images", "images")
_MOST = 500


class Sample(NamedTuple):
    """A picture.

    Attributes:
        id: Its name in addresses.
        name: Its file below the run's folder, for display.
        path: The file.
        step: The step it was drawn at; None if its name doesn't say, as at the end of a run.
        kind: Its media type.
    """

    id: str
    name: str
    path: Path
    step: int | None
    kind: str


def samples(folder: Path) -> list[Sample]:
    """Return the pictures of a run by step; those without a step come last."""
    found = []
    for entry in walk(folder, 2, 4000):
        relative = os.path.relpath(entry.path, folder)
        kind = KINDS.get(os.path.splitext(entry.name)[1].lower())
        within = os.path.dirname(relative).split(os.sep)
        if kind and (relative in _OURS or any(part.lower() in _FOLDERS for part in within)):
            id = hashlib.sha256(os.fsencode(relative)).hexdigest()[:20]
            found.append(Sample(id, printable(relative), Path(entry.path), _step(relative), kind))
    found.sort(key=lambda sample: (sample.step is None, sample.step or 0, sample.name))
    return found[-_MOST:]


def _step(relative: str) -> int | None:
    for part in reversed(relative.split(os.sep)):
        if match := _STEP.search(part):
            return int((match[1] or match[2])[:12])
    return None
