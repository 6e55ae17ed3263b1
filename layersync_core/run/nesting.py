"""Of the nested places that a loss passes, only the outermost adds the term, since it knows how the loss is scaled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_nested = threading.local()


@contextmanager
def inside() -> Iterator[None]:
    """Add no terms within the context."""
    outer = is_inside()
    _nested.inside = True
    try:
        yield
    finally:
        _nested.inside = outer


def is_inside() -> bool:
    """Return whether a place further out adds the term."""
    return getattr(_nested, "inside", False)
