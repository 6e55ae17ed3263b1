"""What a run writes: whole or not at all, and one line where the disk is full."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from layersync_core import LayerSyncError

if TYPE_CHECKING:
    from accelerate import Accelerator

# As Rust writes the system's number of an error, in the versions of safetensors that there are.
_NUMBER = re.compile(r"(?:os error|code:) (\d+)")


class WriteError(LayerSyncError):
    """Something of a run could not be written."""


def why_unwritten(error: BaseException | None) -> str | None:
    """Return why nothing could be written; None where an error is about something else."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError):
        number = _NUMBER.search(str(error))
        return os.strerror(int(number[1])) if number else str(error)
    if isinstance(error, RuntimeError) and "inline_container" in str(error):
        return "torch could not write all of it, as on a full disk"
    return None


@contextmanager
def writing(what: Path) -> Iterator[None]:
    """Tell in one line what could not be written.

    Raises:
        WriteError: What is inside the context could not write.
    """
    try:
        yield
    except Exception as error:
        if (why := why_unwritten(error)) is None:
            raise
        raise WriteError(f"{what} could not be written: {why}") from error


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Give the place of a file or a folder to write to, which becomes the target once it is whole.

    Raises:
        WriteError: It could not be written; the target is what it was, and nothing else is left.
    """
    partial = partial_of(target)
    try:
        with writing(target):
            remove(partial)
            yield partial
            replace(partial, target)
    finally:
        remove(partial)


def partial_of(target: Path) -> Path:
    """Return where something is written before it is whole."""
    return target.with_name(f".{target.name}.partial")


def replace(partial: Path, target: Path) -> None:
    """Put what is whole into its place."""
    # A folder cannot be renamed onto a full one; the older one goes last.
    old = target.with_name(f".{target.name}.old")
    remove(old)
    if target.is_dir():
        target.rename(old)
    partial.rename(target)
    remove(old)


def remove(path: Path) -> None:
    """Take a file or a folder away, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Wait for what all ranks do inside the context, and fail on all of them where one does.

    Raises:
        LayerSyncError: This rank's own, else the first rank's that has one.
    """
    from accelerate.utils import gather_object

    failure: LayerSyncError | None = None
    try:
        yield
    except LayerSyncError as error:
        failure = error
    failures = [told for told in gather_object([failure]) if told is not None]
    if failures:
        raise failure or failures[0]


@contextmanager
def quiet_writers() -> Iterator[None]:
    """Keep tracebacks of a tracker's own thread off the terminal; its caller is told that it cannot write."""
    before = threading.excepthook

    def hook(told: threading.ExceptHookArgs) -> None:
        if why_unwritten(told.exc_value) is None:
            before(told)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
