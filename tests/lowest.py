"""For ``tox -e lowest``: a test or tiny model that needs what the oldest libraries do not have yet is skipped, by name.

``pytest -p tests.lowest`` loads it. What a distribution itself imports is never skipped: its floor would not be true.
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
_LIBRARIES = r"(?:accelerate|diffusers|torch|transformers)"
_MISSING = re.compile(
    rf"cannot import name '(?P<name>\w+)' from '(?P<of>{_LIBRARIES})"
    rf"|module '(?P<module>{_LIBRARIES})[\w.]*' has no attribute '(?P<attribute>\w+)'"
    r"|No module named '(?P<submodule>[\w.]+)'"
    r"|got an unexpected keyword argument '(?P<argument>\w+)'"
    r"|No package metadata was found for (?P<package>[\w-]+)"
)
# What commands say of a class that this diffusers does not have; the test may have seen it in another process.
_TOLD = re.compile(
    r"needs newer versions of what it imports: cannot import name '(\w+)' from 'diffusers"
    r"|(\w+) is not a class of diffusers"
    r"|module diffusers has no attribute (\w+)"
)
_FRAME = re.compile(r"^(\S+\.py):\d+: in ", re.MULTILINE)
# Tools of this repository, which no distribution contains.
_OURS_ALONE = ("tests", "handbook", "benchmarks", "release")


def absent(message: str, files: list[str]) -> str | None:
    """Return the reason to skip, or None.

    Args:
        message: An error's.
        files: Of this repository, through which the call or import went, the last one last.
    """
    if told := _TOLD.search(message):
        return f"diffusers has no {told[1] or told[2] or told[3]} yet"
    found = _MISSING.search(message)
    if found is None or not files or not _may_want(files[-1]):
        return None
    name = next(value for key, value in found.groupdict().items() if value and key not in ("of", "module"))
    library = found["of"] or found["module"]
    return f"{library} {version(library)} has no {name}" if library else f"there is no {name} here yet"


def _may_want(file: str) -> bool:
    """Tests may use what is newer than a floor; an adapter's tiny model, a class of diffusers that is."""
    parts = Path(file).parts
    return "tests" in parts or parts[0] in _OURS_ALONE or (parts[0] == "adapters" and parts[-1] == "tiny.py")


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
    if report.failed and error is not None:
        root = error.__cause__ if isinstance(error.__cause__, ImportError) else error  # of the registry's own error
        files = [file for frame in traceback.extract_tb(root.__traceback__) if (file := _inside(frame.filename))]
        said = f"{root}\n{error}\n{report.capstdout}\n{report.capstderr}"
        if reason := absent(said, files):
            report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"Skipped: {reason}")
    return report
