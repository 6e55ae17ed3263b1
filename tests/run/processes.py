"""Shared by tests that run ``layersync run`` as a process: how it is started, and its settings."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "scripts"
LAYERSYNC = str(Path(sys.executable).with_name("layersync"))
SETTINGS = {
    "layersync_enabled": True,
    "layersync_student_block": 2,
    "layersync_teacher_block": 4,
    "layersync_lambda": 0.5,
}
FLAGS = [part for key, value in SETTINGS.items() for part in (f"--{key}", str(value).lower())]
RUN = [LAYERSYNC, "run", *FLAGS, "--"]
IN_PROCESS = [sys.executable, "-m", "layersync_core", "run", *FLAGS]
FOLDERS = os.pathsep.join(filter(None, (str(SCRIPTS), os.environ.get("PYTHONPATH"))))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": FOLDERS}
SUMMARY = "with the term, 1 rank, similarity"

Done = subprocess.CompletedProcess[str]
Script = Callable[..., str]


def run(words: Sequence[str], code: int | None = 0, **options: Any) -> Done:
    """Run a command to its end, and check its exit code."""
    environment = {**ENVIRONMENT, **options.pop("env", {})}
    if "input" not in options:
        options["stdin"] = subprocess.DEVNULL
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240, check=False, **options)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def python(path: str, *arguments: str) -> list[str]:
    return [sys.executable, path, *arguments]


def without_ours(text: str) -> str:
    """Return standard error without the lines that say they are layersync's."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("layersync: "))
