"""What runs leave behind, as tests write it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from layersync_core import PROCESS_FILE
from layersync_plugin_webui.runs.finding import find_runs


def add_rows(folder: Path, rows: int, start: int = 1, **more: Any) -> None:
    now = time.time()
    with (folder / "layersync_metrics.jsonl").open("a") as file:
        for step in range(start, start + rows):
            row = {"step": step, "time": now + step, "loss": 1 / step, "layersync_similarity": 0.5, **more}
            file.write(json.dumps(row) + "\n")


def change_record(folder: Path, **values: Any) -> None:
    path = folder / PROCESS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def id_of(runs: Path, folder: Path) -> str:
    (found,) = [run.id for run in find_runs(runs) if run.folder == folder]
    return found


def make_old(path: Path, seconds: float = 1000) -> None:
    old = time.time() - seconds
    os.utime(path, (old, old))
