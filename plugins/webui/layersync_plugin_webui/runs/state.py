"""Whether a run is still going, in words: judged by its process or, without a record, by the age of its files."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from layersync_core import read_process
from layersync_plugin_webui.language import later
from layersync_plugin_webui.runs.files import walk
from layersync_plugin_webui.runs.finding import SETTINGS, Run

_FRESH = 60
"""A run without a record seems to be running if it has written within this many seconds."""

LABELS = {
    "running": later("Running"),
    "finished": later("Finished"),
    "stopped": later("Stopped"),
    "killed": later("Ended: killed"),
    "failed": later("Failed"),
    "vanished": later("Ended unexpectedly"),
    "writing": later("Seems to be running"),
    "quiet": later("No sign of life"),
}
"""The name of each state."""


@dataclass(frozen=True)
class State:
    """The state of a run.

    Attributes:
        name: A key of ``LABELS``.
        since: When it began, in seconds since 1970; None if unknown.
        until: When it ended, or its last sign of life.
        code: Its exit code, negative for a signal.
        host: Where it runs; empty if unknown.
        total_steps: How many steps it will do.
    """

    name: str
    since: float | None
    until: float
    code: int | None = None
    host: str = ""
    total_steps: int | None = None

    @property
    def label(self) -> str:
        """Its name in English."""
        return LABELS[self.name]

    @property
    def alive(self) -> bool:
        """Whether the run is still going, as far as can be known."""
        return self.name in ("running", "writing")

    @property
    def seconds(self) -> float | None:
        """How long it has been running or ran."""
        if self.since is None:
            return None
        return (time.time() if self.name == "running" else self.until) - self.since


def state_of(run: Run) -> State:
    """Return the current state of a run."""
    process = read_process(run.process)
    if process is not None:
        return State(process.state, process.since, process.until, process.code, process.host, process.total_steps)
    if os.path.isfile(run.folder / SETTINGS):  # written at the end, also by versions that kept no record
        return State("finished", None, run.began)
    written = max((_written(entry) for entry in walk(run.folder, 2, 500)), default=run.began)
    return State("writing" if time.time() - written < _FRESH else "quiet", None, written)


def _written(entry: object) -> float:
    try:
        return float(entry.stat(follow_symlinks=False).st_mtime)  # type: ignore[attr-defined]
    except OSError:
        return 0.0
