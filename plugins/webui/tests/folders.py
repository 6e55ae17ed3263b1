"""Write folders like those that runs leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from layersync_core import PROCESS_FILE
from layersync_plugin_webui.runs.finding import find_runs


def add_rows(folder: Path, rows: int, start: int = 1, **more: Any) -> None:
    now = time.time()
    with (folder / "layersync_metrics.jsonl").open("a") as file:
        for step in range(start, start + rows):
            row = {"step": step, "time": now + step, "loss": 1 / step, "layersync_similarity": 0.5, **more}
            file.write(json.dumps(row) + "\n")


def picture() -> bytes:
    """Return a PNG of one pixel."""
    file = BytesIO()
    Image.new("RGB", (1, 1), "red").save(file, "png")
    return file.getvalue()


def change_record(folder: Path, **values: Any) -> None:
    path = folder / PROCESS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def id_of(runs: Path, folder: Path) -> str:
    (found,) = [run.id for run in find_runs(runs) if run.folder == folder]
    return found


def make_old(path: Path, seconds: float = 1000) -> None:
    old = time.time() - seconds
    os.utime(path, (old, old))


@contextmanager
def serving(runs: Path) -> Iterator[str]:
    """Start the command on a free port, and return the address that it prints."""
    command = [sys.executable, "-m", "layersync_core", "webui", "--runs", str(runs), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield next(line.strip() for line in process.stdout if line.startswith("http"))
        process.terminate()
