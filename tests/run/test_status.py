"""Status files: their folder, and what their absence says of a command that trained nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.run.processes import FLAGS, LAYERSYNC, RUN, SETTINGS, SUMMARY, Script, python, run

pytestmark = pytest.mark.slow


def test_a_folder_for_status_files_loses_nothing_of_the_users(script: Script, tmp_path: Path) -> None:
    path = script("import tiny_dit; tiny_dit.train(tiny_dit.build(), 5)")
    (tmp_path / "layersync.json").write_text(json.dumps(SETTINGS))
    for name in ("1.json", "hook", "metrics.jsonl"):
        (tmp_path / name).write_text("mine")
    words = [LAYERSYNC, "run", *FLAGS, "--layersync_status_dir", ".", *python(path)]
    for _ in range(2):
        assert f"5 steps {SUMMARY}" in run(words, cwd=tmp_path).stderr
    assert json.loads((tmp_path / "layersync.json").read_text()) == SETTINGS
    assert all((tmp_path / name).read_text() == "mine" for name in ("1.json", "hook", "metrics.jsonl"))
    assert len((tmp_path / "layersync_metrics.jsonl").read_text().splitlines()) == 10


NOTHING = {
    "no Python": (["true"], "no Python of this command read the start-up hook"),
    "isolated": ([sys.executable, "-I", "-c", "pass"], "python -I"),
    "no torch": ([sys.executable, "-c", "pass"], "no process of this command imported torch"),
    "no training": (
        [sys.executable, "-c", "import tiny_dit; tiny_dit.build()(*tiny_dit.batch())"],
        "no process of this command trained a model with LayerSync; model classes seen: DiT",
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_command_that_trains_nothing_fails(case: str) -> None:
    words, said = NOTHING[case]
    done = run([*RUN, *words], 2)
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_links_in_a_status_folder_are_not_followed(script: Script, tmp_path: Path) -> None:
    folder, mine = tmp_path / "status", tmp_path / "mine"
    folder.mkdir()
    mine.write_text("precious")
    for name in ("layersync_hook", "layersync_metrics.jsonl", "layersync_settings.json", "layersync_settings.tmp"):
        (folder / name).symlink_to(mine)
    # The trainer's own process number is not known beforehand.
    path = script(
        f"import os; os.symlink({str(mine)!r}, f{str(folder)!r} + f'/layersync_status_{{os.getpid()}}.tmp')\n"
        "import tiny_dit; tiny_dit.train(tiny_dit.build())"
    )
    done = run([LAYERSYNC, "run", *FLAGS, "--layersync_status_dir", str(folder), *python(path)])
    assert SUMMARY in done.stderr
    assert mine.read_text() == "precious"
    assert "metrics could not be written" in done.stderr
