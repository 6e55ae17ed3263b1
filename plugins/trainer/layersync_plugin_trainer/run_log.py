"""Copy what a run prints into a file in its folder, so that people who didn't start it can read it."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from layersync_core import LOG_FILE, LayerSyncError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_EVERY = 10
"""Seconds between two lines of a progress bar, which redraws itself all the time."""


class Log:
    """Copies standard output and error of a ``with`` block into ``layersync.log``; a full disk doesn't stop training.

    Lines are held back until ``begin``, since a refused run writes nothing. An output that already is that file, as in
    a run that the web page started, isn't copied.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOG_FILE
        self._kept: list[str] | None = []
        self._file: int | None = None
        self._copies: list[_Copy] = []

    def begin(self) -> None:
        """Write the lines held back so far, and write directly from now on."""
        if self._kept is None:
            return
        with suppress(OSError):
            self._file = os.open(self._path, _FLAGS, 0o600)
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                os.close(self._file)
                self._file = None
        kept, self._kept = self._kept, None
        for line in kept:
            self.add(line)

    def add(self, line: str) -> None:
        """Write a line."""
        if self._kept is not None:
            self._kept.append(line)
        elif self._file is not None:
            with suppress(OSError):
                os.write(self._file, f"{line}\n".encode("utf-8", "replace"))

    def __enter__(self) -> Log:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            copy = _Copy(stream, None if _is_file(stream, self._path) else self)
            self._copies.append(copy)
            setattr(sys, name, copy)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, copy in zip(("stdout", "stderr"), self._copies, strict=True):
            copy.end()
            if getattr(sys, name) is copy:
                setattr(sys, name, copy.stream)
        # The command prints the error that ends a run only after this block.
        if self._copies[1].log is not None and isinstance(error, LayerSyncError):
            self.add(f"error: {' '.join(str(error).split())}")
        elif self._copies[1].log is not None and isinstance(error, Exception):
            self.add("".join(traceback.format_exception(error)).rstrip())
        if self._file is not None:
            os.close(self._file)
            self._file = None


class _Copy:
    """A stream whose lines are copied into a log."""

    def __init__(self, stream: Any, log: Log | None) -> None:
        self.stream, self.log = stream, log
        self._line, self._next = "", 0.0

    def write(self, text: str) -> int:
        with _on_a_full_disk():
            self.stream.write(text)
        if self.log is not None:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self.log.add(_last(line))
            if "\r" in self._line:
                self._line = "\r" + _last(self._line)
                if time.monotonic() >= self._next and self._line.strip():
                    self._next = time.monotonic() + _EVERY
                    self.log.add(self._line.strip("\r"))
        return len(text)

    def flush(self) -> None:
        with _on_a_full_disk():
            self.stream.flush()

    def end(self) -> None:
        """Write the last, unfinished line."""
        if self.log is not None and self._line.strip():
            self.log.add(_last(self._line))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _last(line: str) -> str:
    """Return what the screen shows of a line that was overwritten."""
    return next((part for part in reversed(line.split("\r")) if part.strip()), "")


@contextmanager
def _on_a_full_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise


def _is_file(stream: Any, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except (OSError, ValueError, AttributeError):
        return False
