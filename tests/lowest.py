"""For ``tox -e lowest``: a test or tiny model that needs what the oldest libraries do not have yet is skipped, by name.

``pytest -p tests.lowest`` loads it. What the code itself imports is never skipped: its floor would not be true.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Generator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
_MISSING = re.compile(
    r"(?:cannot import name '(\w+)' from |No module named )'((accelerate|diffusers|torch|transformers)[\w.]*)'"
)
_FRAME = re.compile(r"^(\S+\.py):\d+: in ", re.MULTILINE)


def absent(message: str, files: list[str]) -> str | None:
    """Return the reason to skip, or None.

    Args:
        message: Of an import error.
        files: Of this repository, through which the import went, the last one last.
    """
    found = _MISSING.search(message)
    if found is None or not files or not _may_want(files[-1], found[3]):
        return None
    return f"{found[3]} {version(found[3])} has no {found[1] or found[2]}"


def _may_want(file: str, package: str) -> bool:
    """Tests may use what is newer than a floor; an adapter's tiny model, a class of diffusers that is."""
    parts = Path(file).parts
    return "tests" in parts or (package == "diffusers" and parts[0] == "adapters" and parts[-1] == "tiny.py")


def _inside(file: str) -> str | None:
    path = (ROOT / file).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """Skip a file that imports what is absent."""
    report = yield
    text = str(report.longrepr) if report.failed else ""
    files = [file for file in map(_inside, _FRAME.findall(text)) if file]
    if reason := absent(text, files or [collector.path.relative_to(ROOT).as_posix()]):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {reason}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Skip a test that builds what is absent."""
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if error is not None and isinstance(error.__cause__, ImportError):
        error = error.__cause__  # of the registry's own error about a tiny model
    if report.failed and isinstance(error, ImportError):
        frames = traceback.extract_tb(error.__traceback__)
        files = [file for file in (_inside(frame.filename) for frame in frames) if file]
        if reason := absent(str(error), files):
            report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"Skipped: {reason}")
    return report
