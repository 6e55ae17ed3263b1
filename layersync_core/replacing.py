"""Replace a library's function with a wrapper."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def wrap_once(owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
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
