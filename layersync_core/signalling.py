"""Interrupt and kill the processes of a run, and no others, whatever the record in its folder says.

A folder, and so its record, may come from anybody and can name any process. So a process is signalled only if it has
the recorded start time, belongs to this user, and itself shows that it belongs to this run: by its environment, or as a
``layersync`` command that has the run's folder open. A file cannot forge either.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePath
from typing import NamedTuple

from layersync_core.errors import LayerSyncError
from layersync_core.process_record import ProcessState, read_process

RUN_FOLDER = "LAYERSYNC_RUN_FOLDER"
"""Environment variable with the folder of the run that a process belongs to."""

_PROGRAMS = ("layersync", "layersync_core")
_COMMANDS = ("train", "run")


class _Seen(NamedTuple):
    """A process of this user."""

    pid: int
    parent: int
    group: int
    started: int


def interrupt_run(folder: Path) -> None:
    """Interrupt a run as Ctrl-C in its terminal would.

    ``layersync train`` gets one signal, since its processes stop together. Under ``layersync run`` each process of the
    command gets one, and ``layersync run`` itself none, since it would pass the signal on.

    Args:
        folder: The run's folder, with the record of its processes.

    Raises:
        LayerSyncError: It isn't running, or no process that could be signalled is known to belong to it.
    """
    state, table = _running(folder), _table()
    named = _named(folder, state, table)
    chosen = {seen.pid: seen for seen in named}
    if state.kind == "run":
        groups = {seen.group for seen in named}
        chosen |= {seen.pid: seen for seen in _below(chosen, table) if seen.group in groups}
        if len(state.pids) > 1 and len(chosen) > 1:
            chosen.pop(state.pids[0], None)
    for seen in chosen.values():
        _send(seen, signal.SIGINT)


def kill_run(folder: Path) -> None:
    """Kill every process of a run.

    Args:
        folder: The run's folder, with the record of its processes.

    Raises:
        LayerSyncError: It isn't running, or no process that could be killed is known to belong to it.
    """
    state, table = _running(folder), _table()
    roots = {seen.pid for seen in _named(folder, state, table)}
    doomed = list(_below(roots | _marked(folder, table), table))
    for _ in range(3):  # a process may be started meanwhile
        for seen in doomed:
            _send(seen, signal.SIGKILL)
        table = _table()
        doomed = [table[pid] for pid in _marked(folder, table)]


def _running(folder: Path) -> ProcessState:
    state = read_process(folder)
    if state is None or state.state != "running":
        raise LayerSyncError(f"the run in {folder} is not running any more, or it has no record of its processes")
    if not state.here:
        raise LayerSyncError(
            f"this system cannot identify the processes of {folder}; stop the run where it was started, on {state.host}"
        )
    return state


def _named(folder: Path, state: ProcessState, table: dict[int, _Seen]) -> list[_Seen]:
    """Return the processes that the record names and that belong to this run."""
    recorded = zip(state.pids, state.starts, strict=True)
    there = [seen for pid, started in recorded if (seen := table.get(pid)) is not None and seen.started == started]
    proven = [seen for seen in there if _says(seen.pid, folder) or _holds(seen.pid, folder)]
    if not proven:
        shown = ", ".join(str(pid) for pid in state.pids)
        raise LayerSyncError(
            f"process {shown} does not prove to be a run in {folder}, so it was not signalled; "
            "stop it where it was started"
        )
    return proven


def _below(roots: Iterable[int], table: dict[int, _Seen]) -> Iterable[_Seen]:
    """Return the processes and all their descendants."""
    waiting, found = list(roots), {}
    while waiting:
        pid = waiting.pop()
        if pid in found or pid not in table:
            continue
        found[pid] = table[pid]
        waiting += [seen.pid for seen in table.values() if seen.parent == pid]
    return found.values()


def _marked(folder: Path, table: dict[int, _Seen]) -> set[int]:
    """Return the processes whose environment says that they belong to this run."""
    return {pid for pid in table if _says(pid, folder)}


def _table() -> dict[int, _Seen]:
    """Return this user's processes, without this one, its ancestors and the init process."""
    every = {int(name): seen for name in os.listdir("/proc") if name.isdigit() and (seen := _look(int(name)))}
    pid = os.getpid()
    while pid in every:
        pid = every.pop(pid).parent
    every.pop(1, None)
    return every


def _look(pid: int) -> _Seen | None:
    """Return a process of this user that is alive."""
    try:
        if os.stat(f"/proc/{pid}").st_uid != os.geteuid():
            return None
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        state, *fields = text.rpartition(")")[2].split()
        return None if state in "ZX" else _Seen(pid, int(fields[0]), int(fields[1]), int(fields[18]))
    except (OSError, ValueError, IndexError):
        return None


def _says(pid: int, folder: Path) -> bool:
    prefix = f"{RUN_FOLDER}=".encode()
    values = [word[len(prefix) :] for word in _words(pid, "environ") if word.startswith(prefix)]
    return bool(values) and _is(os.fsdecode(values[0]), folder)


def _holds(pid: int, folder: Path) -> bool:
    words = [os.fsdecode(word) for word in _words(pid, "cmdline")]
    names = [PurePath(word).name for word in words]
    place = next((place for place, name in enumerate(names) if name in _PROGRAMS), len(words))
    if words[place + 1 : place + 2] not in [[command] for command in _COMMANDS]:
        return False
    with suppress(OSError):
        return any(_is(f"/proc/{pid}/fd/{number}", folder) for number in os.listdir(f"/proc/{pid}/fd"))
    return False


def _is(path: str, folder: Path) -> bool:
    with suppress(OSError, ValueError):
        return os.path.samefile(path, folder)
    return False


def _words(pid: int, what: str) -> list[bytes]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/{what}").read_bytes().split(b"\0")
    return []


def _send(seen: _Seen, number: int) -> None:
    with suppress(ProcessLookupError):
        try:
            handle = os.pidfd_open(seen.pid)
        except (AttributeError, OSError):  # an older Python or system
            if _lives(seen):
                os.kill(seen.pid, number)
            return
        try:
            if _lives(seen):  # then the handle refers to that process
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def _lives(seen: _Seen) -> bool:
    now = _look(seen.pid)
    return now is not None and now.started == seen.started
