"""The notebook of the examples runs from top to bottom, and shows what it says."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "layersync.ipynb"


@pytest.fixture
def nothing_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what Jupyter writes for its user in the test's folder."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws into the notebook
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))


def outputs(notebook: Any, kind: str) -> list[str]:
    return [
        output.get("text") or output.get("data", {}).get(kind, "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if kind in output.get("data", {}) or (kind == "text/plain" and output.output_type == "stream")
    ]


@pytest.mark.usefixtures("nothing_at_home")
@pytest.mark.filterwarnings("ignore")  # Jupyter's own, of a client that this process doesn't otherwise have
def test_the_notebook_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert len(outputs(notebook, "image/png")) == 2
    text = "".join(outputs(notebook, "text/plain"))
    assert "student: block 2 of 6 (transformer_blocks.1)" in text
    before, ours, plain = map(float, re.findall(r"4: (\S+) before, (\S+) with LayerSync, (\S+) without", text)[0])
    assert before > ours > plain


def test_it_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
