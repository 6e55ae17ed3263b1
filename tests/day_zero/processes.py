"""Commands that may hang, crash or take all there is: each a process of its own, with a limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_LARGEST_FILE = 2**28
"""Bytes that a command may write into one file, its output among them."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code; a signal's number below zero; None where its time was up.
        out: What it printed.
        err: What it complained.
    """

    code: int | None
    out: str
    err: str

    def strange(self, *codes: int) -> str:
        """Return why it ended, where its exit code is none of those that tell something; else nothing."""
        if self.code is None:
            return "its time was up"
        if self.code < 0:
            with suppress(ValueError):
                return f"it ended by {signal.Signals(-self.code).name}"
        return "" if self.code in codes else f"it ended with exit code {self.code}"

    def last(self) -> str:
        """Return the last line that it complained, or printed; empty where it said nothing."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1] if lines else ""


def python(*arguments: str, folder: Path, path: str, seconds: float) -> Ended:
    """Run Python in a folder and wait for it, no longer than its time.

    Args:
        arguments: Of Python.
        folder: Its working directory.
        path: ``PYTHONPATH``.
        seconds: Its time. What it started in its process group, and is there when it has ended, ends as well.
    """
    # Files, since a pipe stays open as long as anything that it started is there.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=_environment(path),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=_limits(),
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out.seek(0)
        err.seek(0)
        return Ended(code, out.read().decode(errors="replace"), err.read().decode(errors="replace"))


def _environment(path: str) -> Mapping[str, str]:
    # Wide, so that pytest cuts no message; without plugins that the surroundings ask for.
    own = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400", "HF_HUB_OFFLINE": "1"}
    return {**{name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}, **own}


def _limits() -> Callable[[], None] | None:
    """Return a function for a new process to call first: it sets limits on itself, as far as the system has them."""
    try:
        import resource
    except ImportError:
        return None

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
        with suppress(OSError):  # where memory runs out, it is the one that goes
            Path("/proc/self/oom_score_adj").write_text("1000")

    return limit
