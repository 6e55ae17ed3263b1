"""Put a function of ours in the place of a library's."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any

_HERE = os.path.dirname(__file__)


def replace(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Replace a function or method, once.

    Args:
        owner: Module or class.
        name: Name of the function in it.
        wrapper: Called with the original and the arguments.
    """
    original = getattr(owner, name)
    if hasattr(original, "replaced_by_layersync"):
        return

    @functools.wraps(original)
    def replaced(*args: Any, **kwargs: Any) -> Any:
        return wrapper(original, *args, **kwargs)

    replaced.replaced_by_layersync = True  # type: ignore[attr-defined]
    setattr(owner, name, replaced)


def show_as_without_us(error: BaseException) -> None:
    """Take the frames of this package out of an error's traceback, and out of those of the errors it came from."""
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
    while trace is not None and os.path.dirname(trace.tb_frame.f_code.co_filename) == _HERE:
        trace = trace.tb_next
    return trace
