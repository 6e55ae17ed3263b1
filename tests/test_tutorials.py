"""The tutorials, command by command, in environments that have core and nothing else of this repository.

What a page shows of a file, what its commands write, and the package under examples are one text.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
ADAPTER, REGULARIZER = "tutorial-adapter.md", "tutorial-regularizer.md"
# What the pages' programs are in an environment whose packages are links: their modules.
SCRIPTS = {"layersync": "layersync_core", "pip": "pip", "twine": "twine"}
# An isolated build would ask an index for hatchling.
OFFLINE = 'python() { if [ "$*" = "-m build" ]; then set -- -m build --no-isolation; fi; command python "$@"; }'


@dataclass(frozen=True)
class Step:
    """A code block of a page, and the line before it."""

    before: str
    language: str
    text: str

    @property
    def path(self) -> str | None:
        """Return the file that the line before names, relative to where the reader is."""
        found = re.search(r"`([^`]+)`(?: becomes)?:$", self.before)
        return found and found[1]


def steps(page: str) -> list[Step]:
    """Return the code blocks of a page in order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(r"([^\n]*)\n\n(?:<!--[^\n]*\n)?```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(found) == len(re.findall(r"^```\w", text, re.MULTILINE)), "a block without an empty line before it"
    return [Step(*parts) for parts in found]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return core's wheel."""
    folder = tmp_path_factory.mktemp("core")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture
def environments(core: Path, third_party: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two virtual environments with core: the reader's, and that of somebody who installs the result."""
    folders = [tmp_path_factory.mktemp("environment") for _ in range(2)]
    for folder in folders:
        venv.create(folder, with_pip=False, symlinks=True)
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "third_party.pth").write_text(f"{third_party}\n")
        with zipfile.ZipFile(core) as wheel:
            wheel.extractall(site)
        for name, module in SCRIPTS.items():
            script = folder / "bin" / name
            script.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m {module} "$@"\n')
            script.chmod(0o755)
    return folders


@pytest.fixture
def index() -> Iterator[tuple[str, list[bytes]]]:
    """Return the address of an index that takes whatever is uploaded, and the requests that it got."""
    got: list[bytes] = []

    class Index(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Index) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", got
        server.shutdown()
        thread.join()


def variables(environment: Path, index: str = "") -> dict[str, str]:
    """Return the variables of a shell in which an environment is active and no index but one is there."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LAYERSYNC"))}
    return ours | {
        "PATH": f"{environment}/bin{os.pathsep}{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_BUILD_ISOLATION": "false",  # pip reads this one as the value of the option that it negates
        "PIP_NO_INDEX": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # a reader has none
        "TWINE_NON_INTERACTIVE": "1",
        "TWINE_PASSWORD": "a token",
        "TWINE_REPOSITORY_URL": index,
        "TWINE_USERNAME": "__token__",
    }


def follow(page: str, folder: Path, environments: list[Path], index: str) -> None:
    """Do what a page says, and compare what comes of it with what the page says."""
    here, mine, said = folder, environments[0], ""
    for step in steps(page):
        if step.language == "bash":
            if "dist/*.whl" in step.text:
                mine = environments[1]
            script = f"{OFFLINE}\ntrap 'pwd > {folder}/.here' EXIT\n{step.text}"
            done = subprocess.run(
                ["bash", "-e", "-c", script],
                cwd=here,
                env=variables(mine, index),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
            )
            said, here = done.stdout, Path((folder / ".here").read_text().strip())
            assert (done.returncode != 0) == ("fail" in step.before), f"{step.text}{said}"
        elif step.path is not None:
            if step.before.endswith("becomes:") or step.before.startswith("Save this as"):
                (here / step.path).write_text(step.text)
            assert (here / step.path).read_text() == step.text, step.path
        elif step.language == "text":
            for line in step.text.splitlines():
                shown = ".*".join(map(re.escape, line.split("…")))
                assert re.search(shown, said), f"the page has\n{line}\nand the command said\n{said}"
        else:
            assert any(step.text in file.read_text() for file in here.rglob("*.toml")), step.text


def files(folder: Path) -> dict[str, str]:
    """Return the text of every file of a package by its path, without what builds and tools leave."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    left = ("dist", "__pycache__")
    kept = {path: full for path, full in found.items() if not path.parts[0].startswith((".", *left))}
    return {path.as_posix(): full.read_text() for path, full in kept.items() if not {*left} & {*path.parts}}


@pytest.mark.parametrize(
    ("page", "package"), [(ADAPTER, "layersync-adapter-tutorial"), (REGULARIZER, "layersync-plugin-quiet-tokens")]
)
def test_the_page_leads_to_the_package(
    page: str, package: str, tmp_path: Path, environments: list[Path], index: tuple[str, list[bytes]]
) -> None:
    if page == REGULARIZER:  # it begins with the model and the script of the other page
        for step in steps(ADAPTER):
            if step.before.startswith("Save this as") and step.path:
                (tmp_path / step.path).write_text(step.text)
    address, uploads = index
    follow(page, tmp_path, environments, address)
    assert files(tmp_path / package) == files(ROOT / "examples" / package)
    shown = {(tmp_path / package / name).read_text() for name in files(tmp_path / package)}
    assert shown - {step.text for step in steps(page)} <= {""}, "a file of the package isn't on the page"
    built = sorted(path.name for path in (tmp_path / package / "dist").iterdir())
    assert len(built) == 2
    assert [name for name in built if not any(name.encode() in upload for upload in uploads)] == []
