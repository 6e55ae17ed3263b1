"""The end of a run's log: plain text, whatever was written there."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from layersync_plugin_webui.runs.files import entries, is_plain, read_part
from layersync_plugin_webui.runs.finding import printable

_BYTES = 64 * 1024
_LINES = 200
_WIDTH = 2000
_ENDINGS = (".log", ".out")
_NAMES = ("log.txt", "stdout.txt", "stderr.txt")
# What colours a terminal, moves its cursor or names its window.
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-_])")


class Tail(NamedTuple):
    """The end of a log: the file's name, and lines of text."""

    name: str
    lines: list[str]


def tail(folder: Path) -> Tail | None:
    """Return the end of the log that was written last in a folder; None where there is none."""
    found = [entry for entry in entries(folder) if is_plain(entry) and _is_log(entry.name)]
    for entry in sorted(found, key=_written, reverse=True):
        try:
            data, about = read_part(Path(entry.path), -_BYTES, _BYTES)
        except OSError:
            continue
        whole = about.st_size <= _BYTES
        lines = data.decode("utf-8", "replace").split("\n")
        # The first line may have begun before what was read.
        shown = [clean(line) for line in (lines if whole or len(lines) == 1 else lines[1:])]
        return Tail(printable(entry.name), shown[:-1][-_LINES:] if shown[-1] == "" else shown[-_LINES:])
    return None


def clean(line: str) -> str:
    """Return a line as it stands in the end: of a progress bar its last state, without what steers a terminal."""
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
