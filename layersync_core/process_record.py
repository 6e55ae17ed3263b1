"""A run's record of its process in its folder, and the state derived from it: running, or ended, and how.

Whether a run is still running is never stored, since a killed process could not take it back. It is derived from the
ids and start times of its processes on the same host and boot, or else from the age of the file, which the run touches.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from layersync_core.errors import LayerSyncError
from layersync_core.files import read_own, replace_file

PROCESS_FILE = "layersync_process.json"
"""Name of the record in the folder of a run."""
LOG_FILE = "layersync.log"
"""Beside it: what the run prints."""
ASKED_FILE = ".layersync.stop"
"""Beside it: which process was asked to stop."""

VERSION = 1
BEAT = 5
"""Seconds between two touches of the file."""
SILENCE = 60
"""Seconds without a touch from which a run elsewhere counts as ended; clocks of two hosts may differ a little."""

State = Literal["running", "finished", "stopped", "killed", "failed", "vanished"]

_STOPS = {signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])}
_LIMIT = 64 * 1024


class _Process(BaseModel):
    """One process; the start time, in the system's own unit, distinguishes it from a later one with the same id."""

    pid: int = Field(gt=0)
    started: int | None = None

    @classmethod
    def of(cls, pid: int) -> _Process:
        """Return a process of this system."""
        return cls(pid=pid, started=_started(pid))

    def lives(self) -> bool:
        """Return whether it is alive, if it is a process of this system."""
        return self.started is not None and _started(self.pid) == self.started


class _Content(BaseModel):
    """The content of the file; a later version may add keys."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    version: int
    kind: str
    host: str
    boot: str
    namespace: str
    since: float
    processes: list[_Process]
    total_steps: int | None = None
    code: int | None = None
    until: float | None = None


@dataclass(frozen=True)
class ProcessState:
    """What is known of a run's process.

    Attributes:
        state: ``running``; ``finished`` (exit code 0), ``stopped`` (Ctrl-C, SIGTERM), ``killed`` (another signal),
            ``failed`` (another code); ``vanished``: it is gone without an exit code.
        kind: The command, ``train`` or ``run``.
        host: The host on which it runs or ran.
        since: When it began, in seconds since 1970.
        until: When it ended, or its last sign of life.
        code: Its exit code, negative for a signal; None while it runs or if it left none.
        total_steps: How many optimiser steps it will do, if known.
        here: Whether its processes can be looked up on this machine.
        pids: Its processes.
        starts: When each of them started, in the system's own unit; None where the system does not say.
    """

    state: State
    kind: str
    host: str
    since: float
    until: float
    code: int | None
    total_steps: int | None
    here: bool
    pids: tuple[int, ...]
    starts: tuple[int | None, ...]


@dataclass
class ProcessRecord:
    """The record of this process's run, written from ``begin`` on; a failure to write it never ends a training.

    Args:
        folder: The run's folder.
        kind: The command, ``train`` or ``run``.
        total_steps: How many optimiser steps the run will do, if known.
    """

    folder: Path
    kind: str
    total_steps: int | None = None
    _content: _Content | None = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _held: int | None = None

    def begin(self, beat: bool = True, pid: int | None = None) -> None:
        """Write the record, once.

        Args:
            beat: Touch it from a separate thread; otherwise ``touch`` must be called every few seconds.
            pid: A process just started by this one, which owns the run until it writes a record itself.
        """
        if self._content is not None:
            return
        host, boot, namespace = _place()
        self._content = _Content(
            version=VERSION,
            kind=self.kind,
            host=host,
            boot=boot,
            namespace=namespace,
            since=time.time(),
            processes=[_Process.of(pid or os.getpid())],
            total_steps=self.total_steps,
        )
        self._write()
        if pid is None:
            with suppress(OSError):  # keeping the folder open proves that this process belongs to it, unlike the record
                self._held = os.open(self.folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        if beat:
            threading.Thread(target=self._beat, name="layersync-heartbeat", daemon=True).start()

    def add(self, pid: int) -> None:
        """Add another process; the run is running while any of them is alive."""
        if self._content is not None:
            self._content.processes.append(_Process.of(pid))
            self._write()

    def touch(self) -> None:
        """Give a sign of life."""
        with suppress(OSError):
            os.utime(self.folder / PROCESS_FILE)

    def end(self, code: int) -> None:
        """Write how the run ended; nothing if it never began, and nothing the second time.

        Args:
            code: The exit code, negative for a signal.
        """
        if self._content is None or self._ended.is_set():
            return
        self._ended.set()
        if self._held is not None:
            os.close(self._held)
        if os.getpid() == self._content.processes[0].pid:  # not in a forked copy of the process
            self._content.code, self._content.until = code, time.time()
            self._write()

    def __enter__(self) -> ProcessRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.end(_code_of(error))

    def _write(self) -> None:
        assert self._content is not None
        with suppress(OSError):
            _put(self.folder, self._content)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self.touch()


def read_process(folder: Path) -> ProcessState | None:
    """Return the current state from the record in a folder; None if there is no readable record."""
    found = _get(folder)
    if found is None:
        return None
    content, touched = found
    here = _is_here(content)
    if content.code is not None:
        state, until = _ending(content.code), content.until or touched
    else:
        state, until = ("running" if _lives(content, touched, here) else "vanished"), touched
    return ProcessState(
        state=state,
        kind=content.kind,
        host=content.host,
        since=content.since,
        until=until,
        code=content.code,
        total_steps=content.total_steps,
        here=here,
        pids=tuple(process.pid for process in content.processes),
        starts=tuple(process.started for process in content.processes),
    )


def note_end(folder: Path, code: int) -> None:
    """Write how a run ended whose processes could not write it; does nothing if one did, or is alive.

    Args:
        folder: The run's folder.
        code: The exit code of the process that was started for it, negative for a signal.
    """
    found = _get(folder)
    if found is not None and found[0].code is None and not _lives(*found, _is_here(found[0])):
        with suppress(OSError):
            _put(folder, found[0].model_copy(update={"code": code, "until": time.time()}))


def _get(folder: Path) -> tuple[_Content, float] | None:
    path = folder / PROCESS_FILE
    try:
        return _Content.model_validate_json(read_own(path, _LIMIT)), path.lstat().st_mtime
    except (OSError, ValidationError):
        return None


def _put(folder: Path, content: _Content) -> None:
    replace_file(folder / PROCESS_FILE, content.model_dump_json())


def _lives(content: _Content, touched: float, here: bool) -> bool:
    if here:
        return any(process.lives() for process in content.processes)
    return time.time() - touched < SILENCE


def _is_here(content: _Content) -> bool:
    """Return whether the record's process ids belong to this system."""
    place = _place()
    return all(place) and place == (content.host, content.boot, content.namespace)


def _ending(code: int) -> State:
    # A shell reports a signal as 128 plus its number.
    number = -code if code < 0 else code - 128
    if number in _STOPS:
        return "stopped"
    if code < 0 or code == 128 + 9:
        return "killed"
    return "failed" if code else "finished"


def _code_of(error: BaseException | None) -> int:
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 2 if isinstance(error, LayerSyncError) else 1


def _place() -> tuple[str, str, str]:
    """Return the scope of process ids: the host, its boot, and the container's pid namespace."""
    return socket.gethostname(), _boot(), _namespace()


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux: the age of the file decides
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        state, *fields = text.rpartition(")")[2].split()  # the name before it may hold brackets and spaces
        return None if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None
