"""The benchmarks run and print what they promise; how fast anything is, no test can judge on a shared machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import twinflow
from benchmarks.measure import median, peak_bytes

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_quick_run_of_the_training_step() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "benchmarks.step", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    cells = [[cell.split() for cell in line.split("|")] for line in done.stdout.splitlines() if " | " in line]
    steps = [[model, *arm.split()] for model in ("DiT", "Wan") for arm in ("layersync", "cut off", "by hand")]
    host = [[depth, arm] for depth in ("8", "32") for arm in ("ours", "run")]
    changing = [["steps"], ["ms", "first"], ["1", "to", "8"], ["9", "to", "12"]]
    assert [row[0] for row in cells] == [["model", "arm"], *steps, ["blocks", "arm"], *host, *changing]
    for row in cells[1:]:
        if row[0][0] not in ("blocks", "steps"):
            assert all(re.search(r"-?\d", " ".join(cell)) for cell in row[1:])
    assert "layersync: SiT#2 (family dit)" in done.stderr, "layersync run attached to both near-empty models"


@pytest.mark.slow
def test_a_quick_run_of_twinflow_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["twinflow", "--quick", "--output_dir", str(tmp_path)])
    twinflow.main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert [*results["arms"]] == ["plain", "TwinFlow", "TwinFlow and LayerSync"]
    for arm, found in results["arms"].items():
        samplers = ("Euler", "Euler with guidance") if arm == "plain" else ("few", "mul", "any")
        for sampler in samplers:
            assert {f"{sampler}, {steps}" for steps in (1, 2, 4)} <= found["0"].keys()
    told = results["arms"]["TwinFlow"]["0"]
    assert told["few, 1"] == told["any, 1"], "in one step both go to 0"
    del results["arms"]["TwinFlow"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    monkeypatch.setattr(twinflow, "run", lambda arm, *rest: told if arm == "TwinFlow" else pytest.fail(arm))
    capsys.readouterr()
    twinflow.main()
    assert capsys.readouterr().out.startswith((tmp_path / "table.md").read_text())


def test_the_page_of_twinflow_has_the_table_of_its_results() -> None:
    results = json.loads((ROOT / "docs" / "twinflow" / "results.json").read_text())
    page = (ROOT / "docs" / "twinflow.md").read_text()
    assert twinflow.table(results["arms"]) in page
    assert all(found.keys() == {"0", "1", "2"} for found in results["arms"].values())
    scale = results["scale"]
    assert f"{scale['steps']} steps of {scale['batch size']} samples" in " ".join(page.split())
    assert f"Held-out data are at {results['held-out data']:.0f}." in page


def test_the_peak_is_what_lives_at_once() -> None:
    def run() -> None:
        first = torch.empty(1 << 20)
        del first
        second, third = torch.empty(1 << 20), torch.empty(1 << 18)
        del second, third

    peak = peak_bytes(run, torch.device("cpu"))
    assert 5 << 20 <= peak < (5 << 20) + 4096


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40))
def test_an_interval_holds_its_median(values: list[int]) -> None:
    middle, low, high = median(values)
    assert min(values) <= low <= middle <= high <= max(values)


def test_intervals_as_in_the_tables_of_order_statistics() -> None:
    assert median(range(5)) == (2, 0, 4)
    assert median(range(6)) == (2.5, 0, 5)
    assert median(range(20)) == (9.5, 5, 14)
