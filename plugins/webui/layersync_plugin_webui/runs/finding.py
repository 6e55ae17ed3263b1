"""Which folders are runs: those that ``layersync train``, ``layersync run`` and tensorboard's loggers leave behind."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from layersync_core import PROCESS_FILE, printable, read_process
from layersync_plugin_webui.runs.files import entries, is_folder, is_plain, walk

METRICS = "layersync_metrics.jsonl"
EVENTS = "events.out.tfevents."
SETTINGS = "run.json"

_DEPTH = 5
_FOLDERS = 20_000
_SKIPPED = ("checkpoint-", ".", "__pycache__", "node_modules", "site-packages")
ARMS = ("layersync", "vanilla")


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        id: Its name in addresses; it doesn't contain the folder, so that no address can lead anywhere else.
        name: Its folder relative to the one that is searched, for display.
        folder: Its folder.
        process: The folder with the record of its process.
        began: When it began, by its record; without one, the folder's time of modification.
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
        arms = [entry for entry in folders if entry.name in ARMS and _is_arm(entry)]
        if arms:
            found += [_run(folder, Path(entry.path), process) for entry in arms]
        elif _is_run(names, folders):
            if PROCESS_FILE not in names:  # its status folder may be one of its subfolders
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
    name = folder.name if relative == "." else relative
    record = read_process(process)
    try:
        began = record.since if record else folder.lstat().st_mtime
    except OSError:
        began = 0.0
    return Run(_id(root, folder), printable(name), folder, process, began)


def _id(root: Path, folder: Path) -> str:
    return hashlib.sha256(os.fsencode(os.path.relpath(folder, root))).hexdigest()[:20]


class Finder:
    """Finds runs, less often the longer it takes.

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

    def look_again(self) -> None:
        """Search again the next time, since there is a new run."""
        self._again = 0.0

    def run(self, id: str) -> Run | None:
        """Return a run; None if there is none with this id.

        A comparison that is just starting is one run, and later two, its arms: the first arm keeps the id.
        """
        runs = self.runs()
        named = next((run for run in runs if run.id == id), None)
        return named or next((run for run in runs if _id(self.folder, run.process) == id), None)
