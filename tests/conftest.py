"""Fixtures for several test files: the built distributions, and an interpreter that sees only those of LayerSync."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the fast tests first; the order is otherwise as collected.

    Where files are handed to several workers, those with slow tests are handed out first, and of these the ones with
    most tests: the last file keeps one worker busy while the others have nothing left to do.
    """
    items.sort(key=_is_slow)
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if _is_slow(item)}
        count = Counter(item.path for item in items)
        items.sort(key=lambda item: (item.path not in slow, -count[item.path], item.path))


def _is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def pytest_collection_finish() -> None:
    """Let tests signal what they start, also where pytest was started with nohup or in a shell's background.

    Such a process ignores the signal, and so would its children; one that handles it, if only by doing nothing, leaves
    them the default. The process that only hands tests to workers does not collect and goes on ignoring it.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


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


# One process for all of them, by the hooks that pip and build call: the wheel is built from the sdist, as a user's is.
_BUILD = """
import os, sys, tarfile
from hatchling.build import build_sdist, build_wheel
for project, out in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    os.chdir(project)
    sdist = build_sdist(out)
    with tarfile.open(f"{out}/{sdist}") as packed:
        packed.extractall(f"{out}/unpacked", filter="data")
    os.chdir(f"{out}/unpacked/{sdist.removesuffix('.tar.gz')}")
    build_wheel(out)
"""


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """Return the built distribution of a folder; all are built at the first call."""

    @cache
    def build() -> dict[Path, Built]:
        files = [*ROOT.glob("adapters/*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")]
        projects = [ROOT, *(file.parent for file in files)]
        folders = {project: tmp_path_factory.mktemp("built") for project in projects}
        words = [str(path) for both in folders.items() for path in both]
        done = subprocess.run([sys.executable, "-c", _BUILD, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return {project: built(project, out) for project, out in folders.items()}

    def built(project: Path, out: Path) -> Built:
        (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
        name = re.search(r'^name = "(.+)"$', (project / "pyproject.toml").read_text(), re.MULTILINE)
        assert name is not None
        return Built(name[1], project, wheel, sdist)

    return lambda folder: build()[ROOT / folder]


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
def install(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Install wheels or pinned requirements, and nothing that they require, into a new folder."""

    def install(requirements: Sequence[str | Path], *flags: str) -> Path:
        folder = tmp_path_factory.mktemp("installed")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *flags]
        done = subprocess.run([*command, *map(str, requirements)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return folder

    return install


@pytest.fixture(scope="session")
def isolated_python(third_party: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python with the given folders before the third-party packages, and no other LayerSync distribution."""

    def run(*arguments: str, path: Sequence[Path], **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, third_party])), **variables}
        # -S: without the site module nothing reads site-packages, so neither the editables nor their metadata exist.
        command = [sys.executable, "-S", *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=third_party.parent, env=environment, stdin=subprocess.DEVNULL
        )

    return run
