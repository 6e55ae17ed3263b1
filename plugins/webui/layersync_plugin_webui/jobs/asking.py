"""Which runs were asked to stop: a file in the run's folder names the process, so that no page asks twice."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from layersync_core import ASKED_FILE, ProcessState
from layersync_plugin_webui.runs.files import read_part

_LONGEST = 100


class Asked:
    """Which runs were asked to stop, by this page or another one.

    A second interrupt would be obeyed without a checkpoint, so it must be known whether there was a first.
    """

    def __init__(self) -> None:
        self._unwritten: dict[Path, tuple[str, float]] = {}

    def first(self, folder: Path, state: ProcessState) -> bool:
        """Record that a run is asked now; return whether it is the first time."""
        name, path = _name(state), folder / ASKED_FILE
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
        for _attempt in range(2):
            try:
                with os.fdopen(os.open(path, flags, 0o600), "w") as file:
                    file.write(name)
                return True
            except FileExistsError:
                if self.since(folder, state) is not None or _is_being_written(path):
                    return False
                with suppress(OSError):  # left by an earlier process
                    path.unlink()
            except OSError:  # no space or no permission: then only this page knows
                break
        self._unwritten[folder] = (name, time.time())
        return True

    def since(self, folder: Path, state: ProcessState | None) -> float | None:
        """Return when a run was asked, in seconds since 1970; None if it wasn't, or has ended."""
        if state is None or state.state != "running" or not state.pids:
            return None
        unwritten, at = self._unwritten.get(folder, ("", 0.0))
        if unwritten == _name(state):
            return at
        try:
            data, about = read_part(folder / ASKED_FILE, 0, _LONGEST)
        except OSError:
            return None
        return about.st_mtime if data == _name(state).encode() else None

    def forget(self, folder: Path) -> None:
        """Remove the record."""
        self._unwritten.pop(folder, None)
        with suppress(OSError):
            (folder / ASKED_FILE).unlink()


def _name(state: ProcessState) -> str:
    return f"{state.pids[0]} {state.starts[0]}" if state.pids else ""


def _is_being_written(path: Path) -> bool:
    with suppress(OSError):
        about = path.lstat()
        return not about.st_size and time.time() - about.st_mtime < 1
    return False
