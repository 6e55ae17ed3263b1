"""accelerate's trackers receive the metrics: tensorboard, wandb and trackio, read back from what they wrote."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest

from tests.curves import check_term, read_curves
from tests.run.processes import FOLDERS, RUN, SCRIPTS, python, run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("LAYERSYNC_TRACKERS" not in os.environ, reason="tox installs the trackers in that folder"),
]

Rows = list[tuple[int, dict[str, float]]]
METRICS = ("loss", "layersync_loss", "layersync_similarity")


def rows_of_tensorboard(folder: Path) -> Rows:
    curves = read_curves(folder)
    check_term(curves, 3)
    columns = zip(*(curves[name] for name in METRICS), strict=True)
    return [(cells[0][0], {name: value for name, (_, value) in zip(METRICS, cells, strict=True)}) for cells in columns]


def rows_of_wandb(folder: Path) -> Rows:
    rows = [json.loads(line) for line in (folder / "wandb_history.jsonl").read_text().splitlines()]
    return [(row["_step"], {name: row[name] for name in METRICS}) for row in rows]


def rows_of_trackio(folder: Path) -> Rows:
    (path,) = (folder / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        return [(step, json.loads(text)) for step, text in database.execute("SELECT step, metrics FROM metrics")]


@pytest.mark.parametrize("way", ["attach", "run"])
def test_every_tracker_receives_the_metrics(way: str, tmp_path: Path) -> None:
    words = python(str(SCRIPTS / "log_with_trackers.py"), str(tmp_path), *(["attach"] if way == "attach" else []))
    environment = {
        "PYTHONPATH": os.pathsep.join((FOLDERS, os.environ["LAYERSYNC_TRACKERS"])),
        "PYTHONWARNINGS": "ignore",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "WANDB_ERROR_REPORTING": "false",
    }
    done = run([*(RUN if way == "run" else []), *words], cwd=tmp_path, env=environment)
    if way == "run":
        assert "logged to tensorboard, wandb, trackio" in done.stderr
    rows = rows_of_wandb(tmp_path)
    assert [step for step, _ in rows] == [0, 1, 2]
    assert rows_of_trackio(tmp_path) == rows
    for (_, found), (_, expected) in zip(rows_of_tensorboard(tmp_path), rows, strict=True):
        assert found == pytest.approx(expected, rel=1e-6)
