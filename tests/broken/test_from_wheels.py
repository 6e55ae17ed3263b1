"""Broken plugins and adapters, installed from wheels all at once: they harm nobody but those who ask for them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from layersync_core.cli import main
from layersync_core.losses.plugins import third_parties
from layersync_core.session import plugins
from tests.broken.wheels import (
    BROKEN_ADAPTERS,
    BROKEN_PLUGINS,
    GOOD_ADAPTERS,
    SILENT_PLUGINS,
    SLOW_WHEELS,
    UNASKED_PLUGINS,
    WHEELS,
    Wheel,
    install,
)
from tests.run.processes import LAYERSYNC, SCRIPTS
from tests.startup_cases import DIT, GOOD

pytestmark = pytest.mark.slow

PROGRAM = """
from tiny_dit import build, train
model = build()
train(model)
print(sum(parameter.double().sum().item() for parameter in model.parameters()))
"""
CHECKED = """family: dit
student: block 2 of 6 (transformer_blocks.1)
teacher: block 4 of 6 (transformer_blocks.3)
weight: 0.2
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every wheel but the slow ones is installed in."""
    return install(WHEELS, tmp_path_factory.mktemp("broken"))


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model's folder and a file of settings."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "config.json").write_text(json.dumps(DIT))
    (folder / "settings.json").write_text(json.dumps(GOOD))
    (folder / "program.py").write_text(PROGRAM)
    return folder, folder / "settings.json"


def command(*words: Any, path: Path | None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a layersync command with a folder of wheels on the path."""
    others = filter(None, (str(path or ""), str(SCRIPTS), os.environ.get("PYTHONPATH")))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(others), **variables}
    return subprocess.run(
        [LAYERSYNC, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


def assert_each_told(errors: str) -> None:
    """Every plugin that is left out is named in one line, adapters are not, and nothing else is said."""
    lines = [line.removeprefix("layersync: ") for line in errors.splitlines()]
    for wheel in (*BROKEN_PLUGINS, *UNASKED_PLUGINS):
        assert len([line for line in lines if wheel.title in line and " left out: " in line]) == 1, wheel.title
    assert "Traceback" not in errors
    assert "plugin-prints " not in errors


class TestOthersGoOn:
    @pytest.mark.parametrize("flags", [[], ["--json"]])
    def test_a_listing(self, site: Path, flags: list[str]) -> None:
        done = command("list-supported", *flags, path=site)
        assert (done.returncode, done.stderr) == (0, "")
        for wheel in (*BROKEN_ADAPTERS, *GOOD_ADAPTERS):
            assert wheel.name in done.stdout
        if flags:
            rows = {row["family"]: row for row in json.loads(done.stdout)}
            assert (rows["dit"]["state"], rows["wan"]["state"]) == ("installed", "conflict")
            assert rows["kolors"]["detail"].startswith("LayerSync itself refuses it: ")

    def test_a_listing_that_loads_them(self, site: Path) -> None:
        wheels = [*BROKEN_ADAPTERS, *GOOD_ADAPTERS]
        names = ",".join(["dit", *(wheel.point for wheel in wheels)])
        done = command("list-supported", "--check", "--json", path=site, LAYERSYNC_LOAD=names)
        rows = {row["family"]: row for row in json.loads(done.stdout)}
        assert done.returncode == 2, done.stderr
        assert rows["dit"]["detail"].startswith("works: ")
        for wheel in GOOD_ADAPTERS:
            assert rows[wheel.point]["detail"].startswith("works: "), rows[wheel.point]
        for wheel in BROKEN_ADAPTERS:
            row = rows[wheel.point]
            assert row["state"] == ("conflict" if wheel.point == "wan" else "broken"), row
            assert wheel.name in (row["distribution"] if wheel.point == "wan" else row["detail"]), row
            assert wheel.says in row["detail"], row

    def test_a_check(self, site: Path, files: tuple[Path, Path]) -> None:
        done = command("check", files[0], "--config", files[1], path=site)
        assert (done.returncode, done.stdout) == (0, CHECKED), done.stderr
        assert_each_told(done.stderr)

    def test_a_run(self, site: Path, files: tuple[Path, Path]) -> None:
        words = ("run", "--config", files[1], "--", sys.executable, files[0] / "program.py")
        alone, beside = (command(*words, path=path) for path in (None, site))
        assert (beside.returncode, beside.stdout) == (alone.returncode, alone.stdout) == (0, alone.stdout)
        assert "with the term, 1 rank, similarity" in beside.stderr
        assert_each_told(beside.stderr)

    def test_what_a_shell_evaluates(self, site: Path, files: tuple[Path, Path]) -> None:
        done = command("env", "--config", files[1], path=site)
        assert done.returncode == 0, done.stderr
        assert [line.partition("=")[0] for line in done.stdout.splitlines()] == [
            "export PYTHONPATH",
            "export LAYERSYNC_RUN",
        ]

    def test_a_command_of_a_plugin(self, site: Path) -> None:
        done = command("train", "--help", path=site)
        assert done.returncode == 0, done.stderr
        assert "--learning_rate" in done.stdout
        assert "--odd_prints_enabled" in done.stdout
        assert "HERE" not in done.stdout
        assert "--shared" not in done.stdout


class TestAskedFor:
    @pytest.fixture(autouse=True)
    def installed(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.syspath_prepend(site)
        for loaded in (plugins, third_parties):
            loaded.cache_clear()
        yield
        for loaded in (plugins, third_parties):
            loaded.cache_clear()

    @staticmethod
    def line(capfd: pytest.CaptureFixture[str], *words: Any) -> str:
        """Run a command that a user's mistake ends, and return its one line."""
        assert main([str(word) for word in words]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        lines = [line for line in err.splitlines() if "HERE" not in line]
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        return lines[0]

    @pytest.mark.parametrize("wheel", BROKEN_ADAPTERS, ids=lambda wheel: wheel.name)
    def test_an_adapter(self, wheel: Wheel, files: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
        line = self.line(capfd, "check", files[0], "--config", files[1], "--family", wheel.point)
        assert wheel.name in line
        assert wheel.says in line

    @pytest.mark.parametrize("wheel", [*BROKEN_PLUGINS, *SILENT_PLUGINS], ids=lambda wheel: wheel.name)
    def test_a_plugin(
        self, wheel: Wheel, files: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        settings = tmp_path / "settings.json"
        settings.write_text(json.dumps(GOOD | dict(wheel.asked)))
        line = self.line(capfd, "check", files[0], "--config", settings)
        assert wheel.title in line
        assert wheel.says in line

    @pytest.mark.parametrize("name", ["adapter-raises", "adapter-lists-none"])
    def test_an_adapter_in_other_commands(
        self, name: str, files: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (wheel,) = (wheel for wheel in BROKEN_ADAPTERS if wheel.name == name)
        for words in (("inspect", files[0], "--json"), ("train", "--output_dir", tmp_path / "out")):
            line = self.line(capfd, *words, "--family", wheel.point)
            assert wheel.name in line
            assert wheel.says in line

    @pytest.mark.parametrize("name", ["plugin-raises", "plugin-claims-our-key"])
    def test_a_flag_of_a_plugin(self, name: str, files: tuple[Path, Path], capfd: pytest.CaptureFixture[str]) -> None:
        (wheel,) = (wheel for wheel in BROKEN_PLUGINS if wheel.name == name)
        for flag in (f"--{wheel.point}_enabled", f"--{wheel.point.replace('_', '-')}-enabled"):
            line = self.line(capfd, "run", "--config", files[1], flag, "true", "--", "python", "x.py")
            assert wheel.title in line
            assert wheel.says in line

    @pytest.mark.parametrize("name", ["plugin-exits", "plugin-exits-in-a-hook"])
    def test_in_a_run(self, name: str, site: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
        (wheel,) = (wheel for wheel in BROKEN_PLUGINS if wheel.name == name)
        settings = tmp_path / "settings.json"
        settings.write_text(json.dumps(GOOD | dict(wheel.asked)))
        done = command("run", "--config", settings, "--", sys.executable, files[0] / "program.py", path=site)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if "HERE" not in line]
        assert wheel.title in line
        assert wheel.says in line


def test_what_is_slow_is_told_as_slow(files: tuple[Path, Path], tmp_path: Path) -> None:
    slow = install(SLOW_WHEELS, tmp_path)
    with ThreadPoolExecutor() as pool:
        checking = pool.submit(command, "list-supported", "--check", path=slow, LAYERSYNC_LOAD="dit,odd_sleeps")
        shell = command("env", "--config", files[1], path=slow, LAYERSYNC_LOAD="odd_takes_long")
    listing = checking.result()
    assert (listing.returncode, shell.returncode) == (0, 0), listing.stderr + shell.stderr
    says = r"took \d+ s to load; LAYERSYNC_LOAD leaves it out\n"
    assert re.fullmatch(rf"warning: adapter adapter-sleeps 9\.8 \(odd_sleeps\) {says}", listing.stderr)
    assert re.fullmatch(rf"warning: plugin plugin-takes-long 9\.8 \(odd_takes_long\) {says}", shell.stderr)
