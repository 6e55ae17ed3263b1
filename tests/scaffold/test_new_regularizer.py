"""``layersync new-regularizer``: the package that it writes works as written, and bad names leave nothing behind."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from layersync_core.cli import main
from tests.cli.support import Capture, error_of
from tests.scaffold.packages import installed, its_tests, python


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["new-regularizer", "wide_channels"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "layersync-plugin-wide-channels: a regularizer wide_channels"
    assert printed[-1] == "python -m pytest tests"
    return tmp_path / "layersync-plugin-wide-channels"


@pytest.mark.slow
def test_its_own_test_passes_as_written(folder: Path) -> None:
    assert re.search(r"^6 passed", its_tests(installed(folder)), re.M)


@pytest.mark.slow
def test_its_loss_is_added_to_a_familys(folder: Path) -> None:
    settings = "--wide_channels_enabled true --wide_channels_block 2 --wide_channels_floor 50"
    done = python(installed(folder), "-m", "layersync_core", "check", "dit", *settings.split())
    assert done.stdout == "family: dit\nwide_channels: block 2 of 6 (transformer_blocks.1)\n", done.stderr


@pytest.mark.slow
def test_it_can_be_built_and_is_typed(folder: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "-w", str(tmp_path), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    listed = subprocess.run([sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True).stdout
    assert "layersync_plugin_wide_channels/py.typed" in listed
    assert "layersync_plugin_wide_channels/loss.py" in listed
    checked = python(folder, "-m", "mypy", "--strict", "layersync_plugin_wide_channels")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.skipif(not find_spec("ruff"), reason="pip install ruff")
def test_its_code_is_clean(folder: Path) -> None:
    chosen = ["--isolated", "--line-length=120", "--select=E,F,I,D,N,UP", "--ignore=D203,D213,D107,D413,N803,N806"]
    done = python(folder, "-m", "ruff", "check", *chosen, str(folder / "layersync_plugin_wide_channels"))
    assert done.returncode == 0, done.stdout


def test_reading_it_needs_no_torch(folder: Path) -> None:
    done = python(folder, "-c", "import layersync_plugin_wide_channels, sys; print('torch' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("My-Loss", "did you mean my_loss?"),
        ("2fast", "use lower-case letters, digits and _"),
        ("", "use lower-case letters"),
        ("lambda", "it is a Python keyword"),
        ("match", "it is a Python keyword"),
        ("none", "its class would be called None"),
        ("term", "its class would be called Term"),
        ("layersync", "layersync itself uses it"),
        ("layersync_wide", "layersync itself uses it"),
        ("layer_sync", "layersync itself uses it"),
        ("crepa", "taken by the plugin layersync-plugin-crepa"),
        ("train", "taken by the command train of layersync-plugin-trainer"),
        ("dispersive", "a setting dispersive_block"),
        ("max", "a setting max_"),
        ("lumina2", "taken by a model family, Lumina 2"),
        ("flux", "taken by a model family, Flux"),
    ],
)
def test_bad_and_taken_names(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in error_of(capsys, "new-regularizer", name)
    assert not [*tmp_path.iterdir()]


def test_a_name_that_an_installed_plugin_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    other = tmp_path / "other_loss-3.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other-loss\nVersion: 3\n")
    (other / "entry_points.txt").write_text("[layersync.plugins]\nedges = other_loss\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = error_of(capsys, "new-regularizer", "edges", "--output", str(tmp_path / "new"))
    assert "other-loss 3 is installed" in said
    assert not (tmp_path / "new").exists()


def test_an_existing_folder_stays_as_it_is(folder: Path, capsys: Capture) -> None:
    before = (folder / "README.md").stat().st_mtime_ns
    assert "exists already" in error_of(capsys, "new-regularizer", "wide_channels")
    assert (folder / "README.md").stat().st_mtime_ns == before


def test_a_folder_that_cannot_be_written(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    asked = str(tmp_path / "file" / "new")
    assert "cannot write" in error_of(capsys, "new-regularizer", "edges", "--output", asked)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
