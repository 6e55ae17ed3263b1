"""Start a training command, end it once torch is imported, and report whether LayerSync was loaded."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from layersync_core.cli.doctor.findings import Finding
from layersync_core.run.command import words_of
from layersync_core.run.settings import read, variables
from layersync_core.run.startup.sitecustomize import DOCTOR, REACHED
from layersync_core.run.status import UNREACHED

_PATIENCE = 10.0
"""Seconds for the command's first Python to start; a program that the hook doesn't reach may already be training."""

_LONG = 300.0
"""Seconds for torch to be imported."""

_ANY = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 2}
"""The hook does nothing without a pair; no model is built."""


def look(command: Sequence[str], patience: float = _PATIENCE, long: float = _LONG) -> Finding:
    """Return whether the start-up hook of ``layersync run`` is reached in the Python that imports torch.

    Args:
        command: Words of the command.
        patience: Seconds within which its first Python must start.
        long: Seconds within which torch must be imported.
    """
    words, title = words_of(command), shlex.join(command)
    if shutil.which(words[0]) is None:
        return Finding("command", title, "wrong", f"no command {words[0]!r}; give the one that starts the training")
    with tempfile.TemporaryDirectory(prefix="layersync-doctor-") as place:
        reached, said = Path(place, "reached"), Path(place, "torch.json")
        travelling = variables(read(_ANY), os.environ, lambda: Path(place, "settings.json"))
        environment = {**os.environ, **travelling, REACHED: str(reached), DOCTOR: str(said)}
        try:
            # In a separate session, so that all of its processes can be ended.
            process = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
            )
        except OSError as error:
            return Finding("command", title, "wrong", f"cannot start {words[0]}: {error.strerror or error}")
        try:
            with _terminable():
                ended = _wait(process, reached, said, patience, long)
        finally:
            _end(process)
        return _judge(title, _read(said), reached.exists(), process.returncode if ended else None)


def _wait(process: subprocess.Popen[Any], reached: Path, said: Path, patience: float, long: float) -> bool:
    """Wait until torch is imported, time runs out, or the command ends; return whether the command ended."""
    started = time.monotonic()
    while process.poll() is None:
        took = time.monotonic() - started
        if said.exists() or took > (long if reached.exists() else patience):
            return False
        time.sleep(0.05)
    return True


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that the command does not outlive this process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen[Any]) -> None:
    with suppress(OSError, AttributeError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(OSError):
        process.kill()
    process.wait()


def _read(said: Path) -> dict[str, str]:
    try:
        return dict(json.loads(said.read_text()))
    except (OSError, ValueError):
        return {}


def _judge(title: str, said: dict[str, str], reached: bool, code: int | None) -> Finding:
    if said.get("error"):
        return Finding("command", title, "wrong", said["error"])
    if said:
        detail = f"LayerSync {said['layersync']} is there when torch {said['torch']} is imported; ended before training"
        return Finding("command", title, "good", detail, origin=said["python"])
    if not reached:
        return Finding("command", title, "wrong", UNREACHED)
    how = "was stopped, since it did not import torch in time" if code is None else f"ended with exit code {code}"
    return Finding("command", title, "wrong", f"the start-up hook was reached, but the command {how}, without torch")
