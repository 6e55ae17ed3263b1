"""Which folders are runs: what ``layersync train``, ``layersync run`` and loggers of tensorboard leave behind."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from layersync_core import PROCESS_FILE, read_process
from layersync_plugin_webui.runs.files import entries, is_folder, is_plain, walk

METRICS = "layersync_metrics.jsonl"
EVENTS = "events.out.tfevents."
SETTINGS = "run.json"

_DEPTH = 5
_FOLDERS = 20_000
_SKIPPED = ("checkpoint-", ".", "__pycache__", "node_modules", "site-packages")
_ARMS = ("layersync", "vanilla")


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        id: What it is called in addresses; it says nothing of the folder, so that no address leads anywhere else.
        name: Its folder below the one that is looked through, to be shown.
        folder: Its folder.
        process: The folder with the record of its process.
        began: When it began, by its record; without one, when something was put into the folder last.
    """

    id: str
    name: str
    folder: Path
    process: Path
    began: float


def find_runs(folder: Path) -> list[Run]:
    """Return the runs below a folder, the latest first; links are not followed."""
    found: list[Run] = []
    waiting, left = [(str(folder), _DEPTH, folder)], _FOLDERS
    while waiting and left > 0:
        place, depth, process = waiting.pop()
        left -= 1
        inside = entries(place)
        names = {entry.name for entry in inside if is_plain(entry)}
        folders = [entry for entry in inside if is_folder(entry)]
        if PROCESS_FILE in names:
            process = Path(place)
        arms = [entry for entry in folders if entry.name in _ARMS and _is_arm(entry)]
        if arms:
            found += [_run(folder, Path(entry.path), process) for entry in arms]
        elif _is_run(names, folders):
            if PROCESS_FILE not in names:  # its status folder may be one of its folders
                records = (Path(entry.path) for entry in folders if os.path.isfile(f"{entry.path}/{PROCESS_FILE}"))
                process = next(records, process)
            found.append(_run(folder, Path(place), process))
        elif depth and "pyvenv.cfg" not in names:
            waiting += [
                (entry.path, depth - 1, Path(entry.path)) for entry in folders if not entry.name.startswith(_SKIPPED)
            ]
    return sorted(found, key=lambda run: (-run.began, run.name))


def _is_run(names: set[str], folders: list[os.DirEntry[str]]) -> bool:
    if not names.isdisjoint((PROCESS_FILE, METRICS)):
        return True
    if any(name.startswith((EVENTS, "layersync_status_")) for name in names):
        return True
    has_logs = any(entry.name == "logs" and _has_events(entry) for entry in folders)
    # Other programs have a run.json as well.
    return has_logs or (SETTINGS in names and any(entry.name.startswith("checkpoint-") for entry in folders))


def _is_arm(entry: os.DirEntry[str]) -> bool:
    inside = entries(entry.path)
    return any(item.name in (SETTINGS, "logs") or item.name.startswith("checkpoint-") for item in inside)


def _has_events(entry: os.DirEntry[str]) -> bool:
    return any(item.name.startswith(EVENTS) for item in walk(entry.path, 3, 500))


def _run(root: Path, folder: Path, process: Path) -> Run:
    relative = os.path.relpath(folder, root)
    raw = os.fsencode(relative)
    name = folder.name if relative == "." else relative
    record = read_process(process)
    try:
        began = record.since if record else folder.lstat().st_mtime
    except OSError:
        began = 0.0
    return Run(hashlib.sha256(raw).hexdigest()[:20], printable(name), folder, process, began)


def printable(text: str) -> str:
    """Return a text without what would not be seen, or would turn the text around it."""
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:  # no name of a file
        raw = text.encode("utf-8", "surrogatepass")
    shown = raw.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)


class Finder:
    """Finds runs, not more often than the time it takes allows.

    Args:
        folder: Runs are looked for below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._found: list[Run] = []
        self._again = 0.0

    def runs(self) -> list[Run]:
        """Return the runs, the latest first."""
        with self._lock:
            started = time.monotonic()
            if started >= self._again:
                self._found = find_runs(self.folder)
                took = time.monotonic() - started
                self._again = time.monotonic() + min(60, max(0.5, 5 * took))
            return self._found

    def run(self, id: str) -> Run | None:
        """Return a run; None where there is none with this id."""
        return next((run for run in self.runs() if run.id == id), None)
