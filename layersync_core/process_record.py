"""What a run says of its own process in its folder, and what follows from that: runs, has ended, and how.

Whether a run is going on is never stored: a process that is killed could not take it back. It follows from the ids of
its processes and their start times on the same host and boot, else from the age of the file, which the run touches.
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

VERSION = 1
BEAT = 5
"""Seconds between two touches of the file."""

SILENCE = 60
"""Seconds without a touch from which a run elsewhere counts as ended; clocks of two hosts may differ a little."""

State = Literal["running", "finished", "stopped", "killed", "failed", "vanished"]

_STOPS = {signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])}
_LIMIT = 64 * 1024


class _Process(BaseModel):
    """One process; the start time, in the system's own unit, tells it from a later one with its id."""

    pid: int = Field(gt=0)
    started: int | None = None

    @classmethod
    def of(cls, pid: int) -> _Process:
        """Return a process of this system."""
        return cls(pid=pid, started=_started(pid))

    def lives(self) -> bool:
        """Return whether it is there, if it is one of this system."""
        return self.started is not None and _started(self.pid) == self.started


class _Content(BaseModel):
    """The file. A later version may add keys."""

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
            ``failed`` (another code); ``vanished``: it left no exit code and is gone.
        kind: The command, ``train`` or ``run``.
        host: Where it runs or ran.
        since: When it began, in seconds since 1970.
        until: When it ended, or the last sign of it.
        code: Its exit code, negative for a signal; None while it runs and where none was left.
        total_steps: How many optimiser steps it is to do, where it knows.
        here: Whether its process is one of this machine that can be asked for.
        pids: Its processes.
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


@dataclass
class ProcessRecord:
    """The record of this process's run; it is written from ``begin`` on, and no failure to write it ends a training.

    Args:
        folder: The run's.
        kind: The command, ``train`` or ``run``.
        total_steps: How many optimiser steps the run is to do, where that is known.
    """

    folder: Path
    kind: str
    total_steps: int | None = None
    _content: _Content | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    def begin(self, beat: bool = True) -> None:
        """Write it, once.

        Args:
            beat: Touch it from a thread of its own; else ``touch`` must be called every few seconds.
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
            processes=[_Process.of(os.getpid())],
            total_steps=self.total_steps,
        )
        self._write()
        if beat:
            threading.Thread(target=self._beat, name="layersync-heartbeat", daemon=True).start()

    def add(self, pid: int) -> None:
        """Name another process: the run goes on while any of them lives."""
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
        if os.getpid() == self._content.processes[0].pid:  # not a copy of the process, made by a fork
            self._content.code, self._content.until = code, time.time()
            self._write()

    def __enter__(self) -> ProcessRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.end(_code_of(error))

    def _write(self) -> None:
        assert self._content is not None
        with suppress(OSError):
            replace_file(self.folder / PROCESS_FILE, self._content.model_dump_json())

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            self.touch()


def read_process(folder: Path) -> ProcessState | None:
    """Return what the record in a folder says now; None where there is none that can be read."""
    path = folder / PROCESS_FILE
    try:
        content = _Content.model_validate_json(read_own(path, _LIMIT))
        touched = path.lstat().st_mtime
    except (OSError, ValidationError):
        return None
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
    )


def _lives(content: _Content, touched: float, here: bool) -> bool:
    if here:
        return any(process.lives() for process in content.processes)
    return time.time() - touched < SILENCE


def _is_here(content: _Content) -> bool:
    """Return whether this system would know the record's processes by their ids."""
    place = _place()
    known = all(place) and all(process.started is not None for process in content.processes[:1])
    return known and place == (content.host, content.boot, content.namespace)


def _ending(code: int) -> State:
    # A shell tells a signal by 128 more.
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
    """Return what an id of a process belongs to: the host, its boot, and the container's own counting of processes."""
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
    """Return when a process started, in clock ticks since the boot; None where it is gone or waits to be reaped."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        state, *fields = text.rpartition(")")[2].split()  # its name may hold brackets and spaces
        return None if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None
