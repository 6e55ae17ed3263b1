"""Fixtures of several test files: the built distributions, and an interpreter that sees nothing else of ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the fast tests first; the order is otherwise as collected."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_collection_finish() -> None:
    """Let tests signal what they start, also where pytest was started with nohup or in a shell's background.

    Such a process ignores the signal, and so would its children; one that handles it, if only by doing nothing, leaves
    them the default. The process that only hands tests to workers does not collect and goes on ignoring it.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print how many configurations went through the conformance kit, in how many checks."""
    from layersync_core.testing.subject import checks

    # Without the kit's own tests, most of which are about adapters that fail.
    passed = {name: count for name, count in checks.items() if not name.startswith("tests.")}
    if passed:
        terminalreporter.write_line(f"conformance: {len(passed)} configurations, {sum(passed.values())} checks")


@dataclass(frozen=True)
class Built:
    """One distribution of this repository, built."""

    name: str
    folder: Path
    wheel: Path
    sdist: Path

    @property
    def package(self) -> str:
        return self.name.replace("-", "_")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """Build the distribution of a folder, once; the wheel is built from the sdist, as a user's is."""

    @cache
    def build(folder: str) -> Built:
        out, project = tmp_path_factory.mktemp("built"), ROOT / folder
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(project)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=out)
        assert done.returncode == 0, done.stdout + done.stderr
        (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
        kind = project.parent.name.removesuffix("s")
        name = "layersync-core" if project == ROOT else f"layersync-{kind}-{project.name.replace('_', '-')}"
        return Built(name, project, wheel, sdist)

    return build


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to everything in site-packages but this repository's editable installs.

    Their .pth files and .dist-info folders must not be seen where a wheel is tested alone. Torch is too large to
    install a second time, and a virtual environment made inside one sees the base interpreter's packages, not these.
    """
    folder = tmp_path_factory.mktemp("third-party")
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            ours = entry.name.lstrip("_").lower().startswith("layersync")
            if not ours and entry.suffix != ".pth" and entry.name != "__pycache__":
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str | Path]], Path]:
    """Install wheels or pinned requirements, and nothing that they require, into a new folder."""

    def install(requirements: Sequence[str | Path]) -> Path:
        folder = tmp_path_factory.mktemp("installed")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        done = subprocess.run([*command, *map(str, requirements)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return folder

    return install


@pytest.fixture(scope="session")
def isolated_python(third_party: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python with the given folders before the third-party packages, and no other distribution of ours."""

    def run(*arguments: str, path: Sequence[Path], **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, third_party])), **variables}
        # -S: without the site module nothing reads site-packages, so neither the editables nor their metadata exist.
        command = [sys.executable, "-S", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=third_party.parent, env=environment, stdin=subprocess.DEVNULL
        )

    return run
