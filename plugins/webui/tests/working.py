"""Programs that the page starts, in tests."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from layersync_core import LOG_FILE, LayerSyncError, kill_run, read_process
from layersync_plugin_webui.jobs import Jobs
from layersync_plugin_webui.runs.finding import Run, find_runs

FORM = {"origin": "http://127.0.0.1:8765"}
"""Headers of a form sent by the page itself."""

LAYERSYNC = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 2}

WAITS = """
import os, signal, sys, time
from pathlib import Path
def note(number, frame):
    print("interrupted", flush=True)
    if "--stubborn" not in sys.argv:
        sys.exit(130)
signal.signal(signal.SIGINT, note)
print("cwd", os.getcwd(), "words", sys.argv[1:], "secret", os.environ.get("MY_TOKEN"), flush=True)
print("python", sys.executable, "on the path", os.environ["PATH"].split(":")[0], flush=True)
print("stdin", repr(sys.stdin.read()), "ready", flush=True)
deadline = time.monotonic() + 120
while time.monotonic() < deadline:
    time.sleep(0.05)
"""
"""A user's program that trains nothing and reports interrupts."""


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def run_of(runs: Path, folder: Path) -> Run:
    (found,) = [run for run in find_runs(runs) if folder in (run.folder, run.process)]
    return found


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run at its current step, so that it is still running when it is asked to stop, however late that is."""
    pids = read_process(folder).pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def log_of(folder: Path) -> str:
    return (folder / LOG_FILE).read_text()


def start_waiting(jobs: Jobs, place: Path, name: str = "own", more: str = "", **given: Any) -> Path:
    """Start a program that waits, and return its run's folder once it is waiting."""
    (place / "waits.py").write_text(WAITS)
    values = {"directory": str(place), "environment": "", "variables": {}} | given
    folder = jobs.run(name, f"{sys.executable} waits.py {more}", LAYERSYNC, **values)
    wait_for(lambda: "ready" in log_of(folder))
    return folder


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page).split())


def end(runs: Path) -> None:
    """Kill whatever runs below a folder."""
    for run in find_runs(runs):
        with suppress(LayerSyncError):
            kill_run(run.process)


def lives(pid: int) -> bool:
    """Return whether a process exists and isn't a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
