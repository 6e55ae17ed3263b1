"""Write a run's files completely or not at all, with a one-line error if the disk is full."""

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

# How Rust prints the system's error number, in the released versions of safetensors.
_NUMBER = re.compile(r"(?:os error|code:) (\d+)")


class WriteError(LayerSyncError):
    """A file of a run could not be written."""


def why_unwritten(error: BaseException | None) -> str | None:
    """Return why writing failed; None if the error is about something else."""
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
    """Turn a failure to write into a one-line error.

    Raises:
        WriteError: Something inside the context could not be written.
    """
    try:
        yield
    except Exception as error:
        if (why := why_unwritten(error)) is None:
            raise
        raise WriteError(f"{what} could not be written: {why}") from error


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Yield a temporary path to write a file or folder to, which replaces the target once it is complete.

    Raises:
        WriteError: It could not be written; the target is unchanged, and nothing else is left behind.
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
    """Return the temporary path at which something is written until it is complete."""
    return target.with_name(f".{target.name}.partial")


def replace(partial: Path, target: Path) -> None:
    """Move what is complete into its place."""
    # A folder cannot be renamed onto a non-empty one; the old one is removed last.
    old = target.with_name(f".{target.name}.old")
    remove(old)
    if target.is_dir():
        target.rename(old)
    partial.rename(target)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Wait for all ranks to finish the block, and fail on all of them if one of them fails.

    Raises:
        LayerSyncError: This rank's own error, else that of the first rank that has one.
    """
    from accelerate.utils import gather_object

    failure: LayerSyncError | None = None
    try:
        yield
    except LayerSyncError as error:
        failure = error
    failures = [message for message in gather_object([failure]) if message is not None]
    if failures:
        raise failure or failures[0]


@contextmanager
def quiet_writers() -> Iterator[None]:
    """Keep tracebacks of a tracker's own thread off the terminal; its caller gets an error of its own."""
    before = threading.excepthook

    def hook(raised: threading.ExceptHookArgs) -> None:
        if why_unwritten(raised.exc_value) is None:
            before(raised)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
