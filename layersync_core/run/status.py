"""Status files: what each process did, for the parent's summary; written early, since a process may be killed."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from layersync_core.files import replace_file

HOOK = "layersync_hook"
"""Name of the file that the start-up hook leaves behind."""

SETTINGS = "layersync_settings.json"
"""Name of the file for settings that are too large for a variable."""

UNREACHED = (
    "no Python of this command ran the start-up hook (python -I, -E or -S, a cleared PYTHONPATH, a frozen program, or "
    "no Python at all); start the trainer's Python without those, or add `import layersync_core.auto` to the script"
)


@dataclass(frozen=True)
class Record:
    """What one training did.

    Attributes:
        name: Its model.
        terms: As in ``Status``, like the other fields.
    """

    name: str
    terms: int
    steps: int
    idle: int
    first: float | None
    last: float | None


@dataclass
class Status:
    """What one process did.

    Attributes:
        pid: Its id.
        rank: Its rank in the run; 0 if there is only one process.
        targets: The models that are trained with LayerSync, one line each.
        terms: Losses that got a term.
        steps: Optimiser steps with a term.
        idle: Optimiser steps without a term, after the first with one.
        first: Similarity at the first step.
        last: The latest known similarity.
        error: Why LayerSync stopped the program; empty if it did not.
        shown: The standard error on which the error was printed, as in ``standard_error``.
        seen: Class names of the models that were built or trained.
        tracker: Where the metrics went; empty if nothing was logged.
        over: The schedule had ended before the first step, so no term was due.
        trainings: A record of each training, if there were several.
        measured: Optimiser steps whose forwards were measured, if that was asked for.
        same: The block that is its own teacher in every pair, so that no term has a gradient; else empty.
        distributions: The distributions whose code took part, as ``name version``.
        blind: Why the tokens that the main loss trains were not measured; empty if they were.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    pid: int = 0
    rank: int = 0
    targets: list[str] = field(default_factory=list)
    terms: int = 0
    steps: int = 0
    idle: int = 0
    first: float | None = None
    last: float | None = None
    error: str = ""
    shown: str = ""
    seen: list[str] = field(default_factory=list)
    tracker: str = ""
    over: bool = False
    measured: int = 0
    same: str = ""
    blind: str = ""
    distributions: list[str] = field(default_factory=list)
    trainings: list[Record] = field(default_factory=list)

    def write(self, folder: Path | None) -> None:
        """Write the file of this process; a full disk or a missing folder doesn't stop the training."""
        if folder is None:
            return
        self.pid = os.getpid()
        path = folder / f"layersync_status_{self.pid}.json"
        with suppress(OSError):
            replace_file(path, json.dumps(asdict(self)))


_ENTRIES = 8  # more would make the last line unreadable
_STATUS = TypeAdapter(Status)


def files(folder: Path) -> Iterator[Path]:
    """Return the status files in a folder, which may also hold a user's own files, ignoring symbolic links."""
    return (path for path in folder.glob("layersync_status_*.json") if not path.is_symlink())


def read_all(folder: Path) -> list[Status]:
    """Return the status of every process that wrote one, by rank."""
    found = []
    for path in files(folder):
        try:
            found.append(_STATUS.validate_json(path.read_bytes()))
        except (OSError, ValueError):  # a process was killed while writing, or it is somebody else's file
            continue
    return sorted(found, key=lambda status: (status.rank, status.pid))


def summary(processes: list[Status]) -> str:
    """Return what a run with LayerSync did, in one line."""
    trained = [status for status in processes if status.terms]
    first = trained[0]
    ranks = len({status.rank for status in trained})
    on = f"{ranks} rank{'s' * (ranks != 1)}"
    if len(first.trainings) > 1:
        each = [f"{training.name}: {', '.join(_did(training))}" for training in first.trainings]
        if len(each) > _ENTRIES:
            each[_ENTRIES // 2 : -_ENTRIES // 2] = [f"{len(each) - _ENTRIES} more trainings"]
        line = "; ".join((*each, on))
    else:
        counted, *similarity = _did(first)
        line = ", ".join((counted, on, *similarity))
    blind = f"which tokens the main loss trains was not measured: {first.blind}" if first.blind else ""
    same = f"{first.same} is its own teacher, so LayerSync's term had no gradient" if first.same else ""
    return "; ".join(filter(None, (line, same, first.tracker, blind)))


def _did(training: Status | Record) -> Iterator[str]:
    what, count = ("step", training.steps) if training.steps else ("loss", training.terms)
    of = f" of {count + training.idle}" if training.idle else ""
    plural = {"step": "s", "loss": "es"}[what] * (count + training.idle != 1)
    yield f"{count}{of} {what}{plural} with the term"
    if training.first is not None:
        last = training.first if training.last is None else training.last
        yield f"similarity {_shown(training.first)} -> {_shown(last)}"


def _shown(similarity: float) -> str:
    return f"{similarity:.4f}" if math.isfinite(similarity) else "not finite"


def why_nothing(processes: list[Status], reached: bool) -> str:
    """Return why no process of a run trained with LayerSync.

    Args:
        processes: Every status.
        reached: The start-up hook ran in some process.
    """
    errors = [status.error for status in processes if status.error]
    if errors:
        return errors[0]
    if not reached:
        return UNREACHED
    if not processes:
        return "no process of this command imported torch, so nothing was trained"
    seen = sorted({name for status in processes for name in status.seen})
    return f"no process of this command trained a model with LayerSync; model classes seen: {', '.join(seen) or 'none'}"


def standard_error() -> str:
    """Return an identifier of this process's standard error; empty where there is none."""
    try:
        found = os.fstat(2)
    except OSError:
        return ""
    return f"{found.st_dev}:{found.st_ino}:{found.st_rdev}"


def say(message: Any) -> None:
    """Print a line to standard error, if there is one; a closed terminal doesn't end the training."""
    line, bars = f"layersync: {message}", sys.modules.get("tqdm")
    if sys.stderr is None:
        return
    with suppress(OSError, ValueError):
        if bars is None:
            print(line, file=sys.stderr, flush=True)
        else:  # on its own line, above the progress bars
            bars.tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()
