"""One run at a time in an output folder."""

from __future__ import annotations

import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from layersync_core import ASKED_FILE, LOG_FILE, PROCESS_FILE, ConfigError, replace_file

LOCK, HOLDER = ".layersync.lock", ".layersync.holder"
"""The locked file, and a second one that says who holds it, since trying a lock may empty the locked file."""

# Files that do not count as a run's output; the holder's file is written under a temporary name first.
_OURS = (LOCK, HOLDER, ".layersync.tmp", PROCESS_FILE, LOG_FILE, ASKED_FILE)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder if need be and keep other runs out of it; the system releases it when this process dies.

    Folders that were made here are removed again if the run leaves nothing else in them.

    Raises:
        ConfigError: The folder cannot be written, or another run holds it; the error says which.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir {folder} is a file; give a folder")
    _refuse_part_of_another(folder)
    has_log = (folder / LOG_FILE).exists()  # written by whoever started this run, to show its output
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0).acquire()
    except Timeout:
        raise ConfigError(
            f"output_dir {folder} is in use by {_holder(folder)}; wait for it, or give another output_dir"
        ) from None
    except NotImplementedError:  # a file system without locks
        print(f"{folder} cannot be locked: a second run in it would overwrite this one's files", file=sys.stderr)
        yield
        return
    except OSError as error:
        raise ConfigError(f"output_dir {folder} cannot be written: {error.strerror or error}") from None
    with lock:
        with suppress(OSError):
            replace_file(folder / HOLDER, json.dumps(_own()))
        try:
            yield
        finally:
            ours = [HOLDER, LOCK, ASKED_FILE]
            with suppress(OSError):  # a run that left nothing needs no record
                ours += [PROCESS_FILE, LOG_FILE] if is_empty(folder) and not has_log else []
            for path in (folder / name for name in ours):
                with suppress(OSError):
                    path.unlink()
            with suppress(OSError):  # the run's files are there
                for path in made:
                    path.rmdir()


def _refuse_part_of_another(folder: Path) -> None:
    """Refuse an arm's folder while its comparison is running, and a comparison's while one of its arms is."""
    arms = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    for beside in (folder.absolute().parent, *arms):
        if not (beside / LOCK).is_file():
            continue
        try:
            with FileLock(beside / LOCK, timeout=0):
                pass
        except Timeout:
            raise ConfigError(
                f"output_dir {folder} belongs together with {beside}, which is in use by {_holder(beside)}; wait for "
                "it, or give another output_dir"
            ) from None
        except (NotImplementedError, OSError):  # not ours to lock
            continue


def is_empty(folder: Path) -> bool:
    """Return whether a folder holds only lock files and the record and log of a run that left nothing else."""
    return all(path.name in _OURS for path in folder.iterdir())


def _own() -> dict[str, str | int]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join(sys.argv),
    }


def _holder(folder: Path) -> str:
    try:
        holder = json.loads((folder / HOLDER).read_text())
        return f"process {holder['pid']} on {holder['host']} since {holder['since']} ({holder['command']})"
    except (OSError, ValueError, KeyError, TypeError):  # it is just starting
        return "another run"
