"""Whether a run goes on, in words. It follows from its process; without a record, from how old its files are."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from layersync_core import read_process
from layersync_plugin_webui.language import later
from layersync_plugin_webui.runs.files import walk
from layersync_plugin_webui.runs.finding import SETTINGS, Run

_FRESH = 60
"""Seconds since the last writing within which a run without a record seems to go on."""

LABELS = {
    "running": later("Running"),
    "finished": later("Finished"),
    "stopped": later("Stopped"),
    "killed": later("Ended: killed"),
    "failed": later("Failed"),
    "vanished": later("Ended without a word"),
    "writing": later("Seems to run"),
    "quiet": later("No sign of life"),
}
"""What each state is called."""


@dataclass(frozen=True)
class State:
    """The state of a run.

    Attributes:
        name: A key of ``LABELS``.
        since: When it began, in seconds since 1970; None where nothing says so.
        until: When it ended, or the last sign of it.
        code: Its exit code, negative for a signal.
        host: Where it runs; empty where nothing says so.
        total_steps: How many steps it is to do.
    """

    name: str
    since: float | None
    until: float
    code: int | None = None
    host: str = ""
    total_steps: int | None = None

    @property
    def label(self) -> str:
        """What it is called, in English."""
        return LABELS[self.name]

    @property
    def alive(self) -> bool:
        """Whether the run goes on, as far as can be known."""
        return self.name in ("running", "writing")

    @property
    def seconds(self) -> float | None:
        """How long it has gone on or went on."""
        if self.since is None:
            return None
        return (time.time() if self.name == "running" else self.until) - self.since


def state_of(run: Run) -> State:
    """Return the state of a run now."""
    process = read_process(run.process)
    if process is not None:
        return State(process.state, process.since, process.until, process.code, process.host, process.total_steps)
    if os.path.isfile(run.folder / SETTINGS):  # written when all is done, by a version that kept no record too
        return State("finished", None, run.began)
    written = max((_written(entry) for entry in walk(run.folder, 2, 500)), default=run.began)
    return State("writing" if time.time() - written < _FRESH else "quiet", None, written)


def _written(entry: object) -> float:
    try:
        return float(entry.stat(follow_symlinks=False).st_mtime)  # type: ignore[attr-defined]
    except OSError:
        return 0.0
