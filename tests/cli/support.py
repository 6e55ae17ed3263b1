"""What the tests of the commands share."""

from __future__ import annotations

import pytest

from layersync_core.cli import main

Capture = pytest.CaptureFixture[str]


def error_of(capsys: Capture, *arguments: str) -> str:
    """Run a command that the user got wrong; return its one line."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    return line
