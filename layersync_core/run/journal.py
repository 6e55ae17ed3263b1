"""What one process of a run reports: its status file, lines that are printed once, and why it stopped."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NoReturn

from layersync_core.errors import LayerSyncError
from layersync_core.run import ranks
from layersync_core.run.ending import at_sudden_end
from layersync_core.run.metrics_log import MetricsLog
from layersync_core.run.showing import say_error
from layersync_core.run.status import Status, say, standard_error, summary

_SECONDS = 5


class Journal:
    """The journal of one process.

    Args:
        folder: Where status and metrics files go; None if no parent waits for them.
        last_names: Returns names of models for the last status file, if nothing was trained.
        fill: Fills in what each training did; called with whether to wait for values that are still on a device.
    """

    def __init__(
        self,
        folder: str | None,
        last_names: Callable[[], Iterable[str]],
        fill: Callable[[Status, bool], None] = lambda status, wait: None,
    ) -> None:
        self._folder, self._copied = folder, False
        self.log = MetricsLog(folder)
        self.status = Status()
        self.seen: dict[str, None] = {}
        self._last_names, self._fill = last_names, fill
        self._said: set[str] = set()
        self._written = 0.0
        self.write()
        atexit.register(self.finish)
        at_sudden_end(self.finish, self._forked)

    def fail(self, error: LayerSyncError) -> NoReturn:
        """Stop the program: tell the parent why, and raise."""
        self.tell(error)
        raise error

    def tell(self, error: LayerSyncError) -> None:
        """Report an error, here and to the parent, unless one was reported before."""
        if not self.status.error:
            self.status.error, self.status.shown = str(error), standard_error()
            self.write()
            say_error(error)  # right away, since the program may catch the error

    def say_once(self, key: str, message: str) -> None:
        """Print a line, unless one was printed under this key."""
        if key not in self._said:
            self._said.add(key)
            say(message)

    def target(self, line: str, accumulation: str) -> None:
        """Record a model that is trained, and print it."""
        self.status.targets.append(line)
        self.status.rank = ranks.rank()
        if self.status.rank == 0:
            say(f"{line}, {accumulation}")

    def write_now_and_then(self) -> None:
        """Write the status file: early, since a program may be killed, then rarely, since that waits for the device."""
        if self.status.terms <= 2 or time.monotonic() - self._written > _SECONDS:
            self.write()

    def write(self) -> None:
        """Write the status file."""
        self._written = time.monotonic()
        self.status.tracker = self.log.where
        self.status.first, self.status.last = self.log.first.peek(), self.log.last.peek()
        self._fill(self.status, False)
        self.status.write(self.log.folder)

    def _forked(self) -> None:
        """Start afresh in a forked copy: what was counted and measured so far is reported by the original process."""
        self._copied = True
        fetch = self.log.fetch
        self.log, self.status = MetricsLog(self._folder), Status()
        self.log.fetch = fetch

    def finish(self) -> None:
        """Write what is left, and the status file for the last time."""
        if self._copied and not self.status.terms:
            return
        with suppress(RuntimeError):  # a failed device is the program's own error
            self._fill(self.status, True)
            self.log.close()
            self.log.first.wait()
            self.log.last.wait()
        if not self.status.terms and not self.status.seen:
            self.status.seen = list(dict.fromkeys([*self.seen, *self._last_names()]))
        self.write()
        if self.log.folder is None and self.status.terms and not self.status.error and ranks.rank() == 0:
            self.say_once("summary", summary([self.status]))  # there is no parent to print it
