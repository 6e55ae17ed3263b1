"""The pictures of the docs: each is one that the command takes, is shown, and is small."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from layersync_core.documentation import DOCUMENTATION
from layersync_plugin_webui.runs.finding import find_runs
from layersync_plugin_webui.runs.state import state_of
from plugins.webui.tests.screenshots import FOLDER, LARGEST, SHOTS, make_runs

ROOT = Path(__file__).parents[3]
SHOWN = {
    (
        ROOT / "docs" / link.removeprefix(DOCUMENTATION) if link.startswith(DOCUMENTATION) else page.parent / link
    ).resolve()
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/*.md")]
    for link in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
}
PICTURES = sorted(FOLDER.glob("*.png"))


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_a_picture_is_taken_by_the_command_is_shown_and_is_small(path):
    assert path.stem in {shot.name for shot in SHOTS}
    assert path in SHOWN
    assert path.stat().st_size < LARGEST
    assert path.read_bytes().startswith(b"\x89PNG")


def test_every_picture_that_is_shown_is_there():
    assert [path for path in SHOWN if path.is_relative_to(FOLDER) and path not in PICTURES] == []
    assert {"en", "zh", "hi"} == {shot.language for shot in SHOTS if FOLDER / f"{shot.name}.png" in PICTURES}


def test_the_runs_that_are_shown_are_runs(tmp_path):
    ids = make_runs(tmp_path / "trainings")
    found = {run.name: state_of(run).name for run in find_runs(tmp_path / "trainings")}
    assert found == {
        "wan-lora": "running",
        "digits/layersync": "finished",
        "digits/vanilla": "finished",
        "flux-dreambooth": "failed",
    }
    assert ids["wan"] in {run.id for run in find_runs(tmp_path / "trainings")}
