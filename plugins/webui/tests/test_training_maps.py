"""The map of a model's blocks, and its measurements."""

from __future__ import annotations

import json
import sys
import time

import pytest

from layersync_core import Block, Findings
from layersync_plugin_webui.training import maps, measuring, routes
from layersync_plugin_webui.training.measuring import Measurement
from layersync_plugin_webui.training.worker import WorkerError
from plugins.webui.tests.filling import FakeWorker, post

PATHS = [f"blocks.{number}" for number in range(6)]
FACTS = {
    "title": "Model",
    "class": "Model",
    "family": "mine",
    "provider": "x 1.0",
    "measurable": True,
    "blocks": [
        {"number": number + 1, "path": path, "width": 8 if number < 4 else 16, "stage": ""}
        for number, path in enumerate(PATHS)
    ],
    "suggested": [2, 4],
    "allowed": [[1, 3], [2, 4]],
    "untrainable": "",
}


def content(**changes):
    grid = [[(student + teacher) / 10 for teacher in range(6)] for student in range(6)]
    grid[0][5] = None
    return {
        "version": 1,
        "model": "Model",
        "blocks": PATHS,
        "noise_levels": [0.2, 0.8],
        "cka": [grid, grid],
        "cosine": [],
        "recommended": [{"student": 2, "teacher": 4, "reason": "measured: <much>"}],
        "verdict": {"answer": "yes", "reason": "deeper blocks are better"},
        "forwards": 3,
        "fed": "",
        **changes,
    }


@pytest.fixture
def measured(runs):
    def measured(name="a", **changes):
        folder = runs / name
        folder.mkdir(parents=True)
        (folder / "suggest.json").write_text(json.dumps(content(**changes)))
        return folder

    return measured


@pytest.fixture(autouse=True)
def worker(monkeypatch):
    found = FakeWorker(model=FACTS)
    monkeypatch.setattr(routes, "Worker", lambda: found)
    return found


def test_what_layersync_suggest_writes_is_read(runs):
    blocks = [Block(number, path, "blocks", 8, "", 6) for number, path in enumerate(PATHS)]
    findings = Findings("Model", blocks)
    findings.write(runs / "deep" / "er")
    (found,) = maps.find(runs, "Model", PATHS)
    assert found.verdict[0] == "unknown"
    assert found.recommended[0][:2] == tuple(FACTS["suggested"])


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "Other"},
        {"blocks": PATHS[:5]},
        {"cka": [[[1]]]},
        {"cka": 3},
        {"cka": [[["x"] * 6] * 6]},
        {"recommended": None},
        {"recommended": [{"student": "x"}]},
        {"verdict": []},
        {"blocks": None},
    ],
    ids=str,
)
def test_another_models_file_or_half_of_one_counts_as_none(runs, measured, changes):
    measured(**changes)
    assert maps.find(runs, "Model", PATHS) == []


def test_a_file_that_is_not_json_or_a_link_counts_as_none(runs, measured, tmp_path):
    measured("a").joinpath("suggest.json").write_bytes(b"\xff[[[")
    (tmp_path / "suggest.json").write_text(json.dumps(content()))
    (runs / "b").mkdir()
    (runs / "b" / "suggest.json").symlink_to(tmp_path / "suggest.json")
    (runs / "c").mkdir()
    (runs / "c" / "suggest.json").write_text("[" * 100_000)
    assert maps.find(runs, "Model", PATHS) == []


def test_cells_are_the_pairs_that_fit(runs, measured):
    measured()
    (found,) = maps.find(runs, "Model", PATHS)
    cells = [cell for row in maps.rows(FACTS, found, "cka") for cell in row if cell]
    assert [(cell.student, cell.teacher) for cell in cells] == [
        (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4), (5, 6),
    ]  # fmt: skip
    assert {(cell.student, cell.teacher) for cell in cells if cell.allowed} == {(1, 3), (2, 4)}
    assert [(cell.student, cell.teacher) for cell in cells if cell.recommended] == [(2, 4)]
    shades = [cell.shade for cell in cells]
    assert shades == sorted(shades)
    assert maps.ends(found, "cka") == (0, 1)
    assert all(cell.shade is None for row in maps.rows(FACTS, None, "") for cell in row if cell)


def test_the_page_draws_it_with_what_was_found(reader, measured):
    measured()
    text = post(reader, "/training/model", family="mine").text
    assert "<strong>yes</strong>: deeper blocks are better" in text
    assert "measured: &lt;much&gt;" in text
    assert 'data-s="2" data-t="4" data-v="0.400" class="h8 allowed best"' in text
    assert text.count('role="gridcell"') == 7
    assert "style=" not in text
    assert "Linear CKA" in text
    assert "Cosine" not in text, "nothing was measured of it"
    assert (
        '<td class="number">6</td><td class="number">5</td><td class="number">16</td><td><code>blocks.5</code>' in text
    )


def test_without_measurements_the_map_shows_the_rule(reader):
    text = post(reader, "/training/model").text
    assert text.count("allowed") >= 2
    assert "has not been measured" in text
    assert "data-v" not in text


def test_the_latest_measurement_counts(runs, measured, reader):
    import os

    folder = measured("old", verdict={"answer": "no", "reason": "older"})
    os.utime(folder / "suggest.json", (1, 1))
    measured("new")
    assert [found.verdict[0] for found in maps.find(runs, "Model", PATHS)] == ["yes", "no"]


def test_a_refused_family_says_why(reader, worker):
    worker.answers["model"] = WorkerError("LayerSync does not support Kolors: a UNet & more")
    text = post(reader, "/training/model", family="kolors").text
    assert "LayerSync does not support Kolors: a UNet &amp; more" in text
    assert "<table" not in text


def test_a_model_only_for_the_users_own_command_is_reported(reader, worker):
    worker.answers["model"] = {**FACTS, "untrainable": "black/forest does not exist"}
    text = post(reader, "/training/model", model="black/forest").text
    assert "black/forest does not exist" in text
    assert "6 blocks" in text


def until_done(measurement):
    deadline = time.monotonic() + 20
    while measurement.state().goes_on:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return measurement.state()


def test_a_measurement_runs_beside_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(
        measuring, "COMMAND", [sys.executable, "-c", "import sys; print('12%\\r', sys.argv[1:]); sys.exit(2)"]
    )
    measurement = Measurement()
    assert measurement.state() is None
    measurement.start("--evil", "mine", tmp_path / "out")
    state = until_done(measurement)
    assert (state.code, state.model) == (2, "--evil")
    assert state.line == f"['--output_dir={tmp_path / 'out'}', '--family=mine', '--', '--evil']"


def test_one_at_a_time_and_it_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "COMMAND", [sys.executable, "-c", "import time; time.sleep(60)"])
    measurement = Measurement()
    measurement.start("a", "", tmp_path / "a")
    measurement.start("b", "", tmp_path / "b")
    assert measurement.state().model == "a"
    assert not (tmp_path / "b").exists()
    measurement.stop()
    assert until_done(measurement).code


def test_the_button_measures_the_chosen_model(reader, runs, jobs, monkeypatch):
    monkeypatch.setattr(measuring, "COMMAND", [sys.executable, "-c", "import time; time.sleep(60)"])
    text = post(reader, "/training/measure", model="./m", family="mine").text
    assert "Measuring ./m" in text
    assert "Measuring ./m" in reader.get("/training/measure").text
    (folder,) = (runs / "layersync-suggest").iterdir()
    assert (folder / "suggest.log").exists()
    text = post(reader, "/training/measure?stop").text
    assert "Measure this model" in text
    assert reader.get("/runs").text.count("layersync-suggest") == 0, "a measurement isn't a run"
