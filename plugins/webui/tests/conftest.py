from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from layersync_core import ProcessRecord
from layersync_plugin_webui.app import make_app
from layersync_plugin_webui.guard import Gate
from layersync_plugin_webui.training import routes
from plugins.webui.tests.browser import opened
from plugins.webui.tests.filling import FakeJobs
from plugins.webui.tests.folders import add_rows, serving

HOST = "127.0.0.1:8765"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def gate() -> Gate:
    return Gate("127.0.0.1", 8765)


@pytest.fixture
def stranger(runs: Path, gate: Gate) -> Iterator[TestClient]:
    """A browser that has not opened the printed address."""
    with TestClient(make_app(runs, gate), base_url=f"http://{HOST}", follow_redirects=False) as client:
        yield client


@pytest.fixture
def reader(stranger: TestClient, gate: Gate) -> TestClient:
    """A browser that has."""
    assert stranger.get(f"/?token={gate.token}").status_code == 303
    return stranger


@pytest.fixture
def jobs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJobs:
    """Replaces the object that starts processes for the Training page."""
    found = FakeJobs(runs)
    monkeypatch.setattr(routes, "jobs_of", lambda request: found)
    return found


@pytest.fixture
def make_run(runs: Path) -> Callable[..., Path]:
    """Write the folder of a run as `layersync run` leaves it: rows of metrics, and how it ended."""

    def make(name: str = "run", rows: int = 3, code: int | None = 0, **first: Any) -> Path:
        folder = runs / name
        folder.mkdir(parents=True)
        record = ProcessRecord(folder, "run", 3)
        record.begin(beat=False)
        if code is not None:
            record.end(code)
        add_rows(folder, rows, **first)
        return folder

    return make


@pytest.fixture
def address(runs: Path) -> Iterator[str]:
    """The address that the command itself prints, of a page on a free port."""
    with serving(runs) as address:
        yield address


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    """A browser that has opened the printed address, at the list of runs."""
    with opened(chromium, address.replace("/?", "/runs?")) as page:
        yield page
