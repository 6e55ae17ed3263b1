"""Files in folders of runs, which may hold anything: links aren't followed, pipes not opened, files not read whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_part(path: Path, start: int, limit: int) -> tuple[bytes, os.stat_result]:
    """Return up to ``limit`` bytes of a regular file, and its ``stat``.

    Args:
        path: The file.
        start: Where to begin; negative counts from its end.
        limit: Bytes at most.

    Raises:
        OSError: It cannot be read, or isn't a regular file.
    """
    with os.fdopen(os.open(path, _FLAGS), "rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{path} is not a regular file")
        if start > found.st_size:  # lengths that a file declares may be any number
            return b"", found
        file.seek(start if start >= 0 else max(0, found.st_size + start))
        return file.read(limit), found


def entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """Return what is in a folder, by name; nothing if it cannot be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError:
        return []


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder and not a link to one."""
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def is_plain(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a file and not a link to one."""
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def walk(folder: Path | str, depth: int, most: int = 5000) -> Iterator[os.DirEntry[str]]:
    """Return the regular files below a folder, up to a depth and a number of entries."""
    waiting = [(str(folder), depth)]
    while waiting and most > 0:
        place, left = waiting.pop()
        for entry in entries(place):
            most -= 1
            if is_plain(entry):
                yield entry
            elif left and is_folder(entry):
                waiting.append((entry.path, left - 1))
