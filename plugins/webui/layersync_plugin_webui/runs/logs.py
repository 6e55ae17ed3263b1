"""The end of a run's log as plain text, whatever was written there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from layersync_core import printable
from layersync_plugin_webui.runs.files import entries, is_plain, read_part

_BYTES = 64 * 1024
_LINES = 200
_WIDTH = 2000
_ENDINGS = (".log", ".out")
_NAMES = ("log.txt", "stdout.txt", "stderr.txt")
# Escape sequences that colour a terminal, move its cursor or name its window.
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


class Tail(NamedTuple):
    """The end of a log: the file's name, and lines of text."""

    name: str
    lines: list[str]


def tail(folder: Path, masked: Callable[[str], str] = str) -> Tail | None:
    """Return the end of the most recently written log in a folder; None if there is none.

    Args:
        folder: The folder.
        masked: Removes from a text what must not be shown.
    """
    found = [entry for entry in entries(folder) if is_plain(entry) and _is_log(entry.name)]
    for entry in sorted(found, key=_written, reverse=True):
        try:
            data, about = read_part(Path(entry.path), -_BYTES, _BYTES)
        except OSError:
            continue
        whole = about.st_size <= _BYTES
        lines = masked(data.decode("utf-8", "replace")).split("\n")
        # The first line may be cut off at its beginning.
        shown = [clean(line) for line in (lines if whole or len(lines) == 1 else lines[1:])]
        return Tail(printable(entry.name), shown[:-1][-_LINES:] if shown[-1] == "" else shown[-_LINES:])
    return None


def clean(line: str) -> str:
    """Return a line as it finally looks: a progress bar's last state, without escape sequences."""
    last = next((part for part in reversed(line.split("\r")) if part.strip()), "")
    text = _TERMINAL.sub("", last)[:_WIDTH]
    return "".join(char for char in text if char.isprintable() or char == "\t")


def _is_log(name: str) -> bool:
    return name.endswith(_ENDINGS) or name in _NAMES


def _written(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return 0.0
