"""One process in a run's folder: its log and record; if it cannot be started, nothing is left behind."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from layersync_core import ASKED_FILE, LOG_FILE, PROCESS_FILE, RUN_FOLDER, ConfigError, ProcessRecord, read_process
from layersync_plugin_webui.jobs.environments import layersync_of
from layersync_plugin_webui.jobs.names import make_folder
from layersync_plugin_webui.jobs.placing import about

_LOG = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True)
class Program:
    """What is started.

    Attributes:
        kind: The command, ``train`` or ``run``.
        python: The Python whose ``layersync`` it is.
        words: The command line; its first word is ``layersync``.
        variables: All of its environment; not shown, since there are secrets among them.
        place: The folder that it runs in; None for the page's own.
        steps: How many optimiser steps it will do, if that is known.
    """

    kind: str
    python: str
    words: Sequence[str]
    variables: Mapping[str, str] = field(repr=False)
    place: Path | None = None
    steps: int | None = None


@contextmanager
def new_folder(runs: Path, name: str) -> Iterator[Path]:
    """Make a run's folder, and remove it again if nothing can be started in it.

    Raises:
        ConfigError: The name is invalid or taken, or the folder cannot be made.
    """
    with about("name"):
        folder = make_folder(runs, name)
    try:
        yield folder
    except BaseException:
        for file in (LOG_FILE, PROCESS_FILE, ASKED_FILE):
            with suppress(OSError):
                (folder / file).unlink()
        with suppress(OSError):
            folder.rmdir()
        raise


def launch(program: Program, folder: Path) -> subprocess.Popen[bytes]:
    """Start a program that lives on when the page ends; the first line of its log is its command line.

    Raises:
        ConfigError: It cannot be started or recorded.
    """
    try:
        with os.fdopen(os.open(folder / LOG_FILE, _LOG, 0o600), "wb", buffering=0) as log:
            if not stat.S_ISREG(os.fstat(log.fileno()).st_mode):
                raise ConfigError(f"{folder / LOG_FILE} is not a regular file; remove it")
            line = f"$ {shlex.join(program.words)}\n".encode("utf-8", "surrogateescape")
            if log.write(line) != len(line):
                raise ConfigError(f"{folder / LOG_FILE} cannot be written, so nothing was started; make room")
            process = subprocess.Popen(
                [*layersync_of(program.python), *program.words[1:]],
                cwd=program.place,
                env={**program.variables, RUN_FOLDER: str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C and closing the page's terminal don't reach it
            )
    except OSError as error:
        raise ConfigError(f"nothing can be started in {folder}: {error.strerror or error}") from None
    ProcessRecord(folder, program.kind, program.steps).begin(beat=False, pid=process.pid)
    recorded = read_process(folder)
    if recorded is None or process.pid not in recorded.pids:
        process.kill()
        process.wait()
        raise ConfigError(f"{folder / PROCESS_FILE} cannot be written, so nothing was started; make room")
    return process
