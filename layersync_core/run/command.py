"""Start a command with LayerSync, wait for it, and report the outcome."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from layersync_core.errors import ConfigError, LayerSyncError
from layersync_core.process_record import BEAT, ProcessRecord
from layersync_core.run.settings import LaunchSettings, Settings, is_on, variables
from layersync_core.run.startup.sitecustomize import REACHED
from layersync_core.run.status import (
    HOOK,
    SETTINGS,
    UNREACHED,
    files,
    read_all,
    say,
    standard_error,
    summary,
    why_nothing,
)
from layersync_core.signalling import RUN_FOLDER

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGINT,)
# Seconds within which a Python process of the command should have started.
_PATIENCE = 10
_USER_ERROR = 2


def check_files(launch: LaunchSettings) -> None:
    """Refuse adapter files that cannot be read or written, before anything is started.

    Raises:
        ConfigError: There is such a file.
    """
    if launch.layersync_family is None:  # then there is nothing to save either
        return
    files = import_module("layersync_core.families.discovered")  # imported late, since adapters' capture needs torch
    if files.is_adapter_file(launch.layersync_family):
        files.read_adapter(launch.layersync_family)
    if launch.layersync_save_adapter is not None:
        files.place_of(launch.layersync_save_adapter)


def words_of(command: Sequence[str]) -> list[str]:
    """Return the words that start a command; if the first is a script, it is run with this Python."""
    return [sys.executable, *command] if command[0].endswith(".py") else list(command)


def run(settings: Settings, command: Sequence[str]) -> int:
    """Run a command with LayerSync in every Python of its process tree, and return its exit code.

    Raises:
        ConfigError: There is no such command, or the status folder cannot be created.
        LayerSyncError: The command succeeded but trained nothing with LayerSync, or LayerSync stopped it.
    """
    words = words_of(command)
    if shutil.which(words[0]) is None:
        raise ConfigError(f"no command {words[0]!r}; after the settings give the command that starts the training")
    check_files(settings.launch)
    if not is_on(settings):
        os.execvp(words[0], words)
    with _status_folder(settings.launch.layersync_status_dir) as folder:
        settings.given["layersync_status_dir"] = str(folder)
        travelling = variables(settings, os.environ, lambda: folder / SETTINGS)
        environment = {**os.environ, **travelling, REACHED: str(folder / HOOK), RUN_FOLDER: str(folder)}
        record = ProcessRecord(folder, "run")
        code = _wait(words, environment, record, reached=(folder / HOOK).exists)
        failure = _report(folder)
        if failure is not None and code and not failure.ours:
            failure = None  # the program's own failure
        record.end(code if failure is None or code < 0 else _USER_ERROR)
    if code < 0:
        _die_by(-code)
    if failure is None:
        return code
    if failure.told:
        return _USER_ERROR
    raise LayerSyncError(failure.why)


class _Failure(NamedTuple):
    """Why there is no summary; whether LayerSync itself stopped the program, and already printed that here."""

    why: str
    ours: bool = False
    told: bool = False


def _report(folder: Path) -> _Failure | None:
    """Print the summary; return why there is none."""
    processes = read_all(folder)
    failed = next((status for status in processes if status.error), None)
    if failed is not None:
        return _Failure(failed.error, ours=True, told=bool(failed.shown) and failed.shown == standard_error())
    if any(status.terms for status in processes):
        say(summary(processes))
        return None
    if any(status.measured for status in processes):
        return None
    if any(status.over for status in processes):
        say("the schedule was over before the first step, so no term was added")
        return None
    return _Failure(why_nothing(processes, (folder / HOOK).exists()))


@contextlib.contextmanager
def _status_folder(asked: str | None) -> Iterator[Path]:
    if asked:
        folder = Path(asked).resolve()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for old in (*files(folder), folder / HOOK, folder / SETTINGS):  # left by an earlier run
                old.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(f"layersync_status_dir {folder}: {error.strerror or error}") from None
        try:
            yield folder
        finally:
            (folder / SETTINGS).unlink(missing_ok=True)
        return
    folder = Path(tempfile.mkdtemp(prefix="layersync-run-"))
    try:
        yield folder
    finally:
        # Metrics that were written only there are kept; the summary says where they are.
        (folder / SETTINGS).unlink(missing_ok=True)
        if not any(folder.glob("*.jsonl")):
            shutil.rmtree(folder, ignore_errors=True)


def _wait(words: list[str], environment: dict[str, str], record: ProcessRecord, reached: Callable[[], bool]) -> int:
    with _Signals() as signals:
        try:
            child = subprocess.Popen(words, env=environment, preexec_fn=signals.restore)
        except OSError as error:
            raise ConfigError(f"cannot start {words[0]}: {error.strerror or error}") from None
        # No separate thread touches it, since a fork follows, and the waiting loop below wakes up often enough.
        record.begin(beat=False)
        record.add(child.pid)
        signals.until_done(child, reached, record.touch)
    return child.returncode


class _Signals:
    """Pass signals on to the child, except those from the terminal, which the child gets itself."""

    def __enter__(self) -> _Signals:
        self._waits = hasattr(signal, "sigtimedwait")
        if self._waits:
            self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*_FORWARDED, signal.SIGCHLD))
        return self

    def restore(self) -> None:
        """Restore the signal handling of this process in a child."""
        if self._waits:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def until_done(self, child: subprocess.Popen[Any], reached: Callable[[], bool], touch: Callable[[], None]) -> None:
        """Wait for the child, touching the record now and then; warn if the start-up hook isn't reached for a while."""
        if not self._waits:  # macOS, Windows: the sender of a signal is unknown
            for number in _FORWARDED:
                signal.signal(number, lambda number, frame: child.send_signal(number))
            while child.poll() is None:
                touch()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(BEAT)
            return
        started = touched = time.monotonic()
        while child.poll() is None:
            if time.monotonic() - touched > BEAT:
                touch()
                touched = time.monotonic()
            if not reached() and time.monotonic() - started > _PATIENCE:
                say(f"warning: {UNREACHED}")
                reached = _said
            # With a time-out, since a child that ended before the wait sends no second signal.
            received = signal.sigtimedwait((*_FORWARDED, signal.SIGCHLD), 1)
            if received is not None and received.si_signo in _FORWARDED and received.si_code <= 0:
                child.send_signal(received.si_signo)

    def __exit__(self, *exception: object) -> None:
        self.restore()


def _said() -> bool:
    return True


def _die_by(number: int) -> None:
    sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):  # SIGKILL can't have a handler
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
