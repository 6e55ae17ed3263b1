"""Fixtures of the tests of ``layersync run``: inside this process, and as one of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.run.inside import Launch, switched_on
from tests.run.processes import ENVIRONMENT, Script


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Switch ``layersync run`` on in this process; everything is undone afterwards."""
    with switched_on(tmp_path) as launch:
        yield launch


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Write a script and return its path."""

    def write(text: str, name: str = "script.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command and return when its program says that it is ready; it is killed when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def begin(words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            words,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
