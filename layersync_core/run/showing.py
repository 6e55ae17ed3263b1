"""How errors and warnings are shown: LayerSync's in one line, the program's own as without LayerSync."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from layersync_core import replacing
from layersync_core.errors import LayerSyncError, LayerSyncWarning
from layersync_core.run.status import say

_HERE = os.path.dirname(__file__)
# Files whose frames are between a program and a library that it calls.
_OURS = (_HERE + os.sep, replacing.__file__)


def exception_hook() -> None:
    """Show a LayerSync error that ends the program as one line, since its traceback only shows LayerSync's code."""
    others = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, LayerSyncError):
            say_error(error)
        else:
            show_as_without_us(error)
            others(kind, error, error.__traceback__)

    sys.excepthook = show


class _Lines(logging.Handler):
    """Print log records as LayerSync's own lines, since a program's handlers may write to its output."""

    def emit(self, record: logging.LogRecord) -> None:
        from layersync_core.run import ranks  # imported late, as below

        if ranks.rank() == 0:
            say(record.getMessage())


def say_logs() -> None:
    """Print what LayerSync logs as its own lines."""
    logger = logging.getLogger("layersync_core")
    if logger.propagate:
        logger.addHandler(_Lines(logging.WARNING))
        logger.propagate = False


def say_error(error: LayerSyncError) -> None:
    """Print an error, once."""
    if not getattr(error, "said", False):
        say(f"error: {error}")
    error.said = True  # type: ignore[attr-defined]


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print each of LayerSync's warnings in one line, on one rank; others are shown as usual."""
    from layersync_core.run import ranks  # it needs torch, which a script that fails early may not have loaded

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LayerSyncWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, LayerSyncWarning):
            if ranks.rank() == 0:
                say(f"warning: {warning.message}")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def show_as_without_us(error: BaseException) -> None:
    """Remove this package's frames from the traceback of an error and of the errors that caused it."""
    seen: set[int] = set()
    shown: BaseException | None = error
    while shown is not None and id(shown) not in seen:
        seen.add(id(shown))
        shown.__traceback__ = trace = _skip(shown.__traceback__)
        while trace is not None:
            trace.tb_next = _skip(trace.tb_next)
            trace = trace.tb_next
        shown = shown.__cause__ or shown.__context__


def _skip(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return trace
