"""Objects of libraries that run backward themselves, and divide the loss before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from layersync_core.run.nesting import inside, is_inside
from layersync_core.run.process import training


def run_backward(original: Callable[..., Any], engine: Any, loss: Any, *args: Any, **kwargs: Any) -> Any:
    """Add the term to a loss that is handed to an engine, and let the engine go on."""
    if not is_inside():
        divides = getattr(engine, "gradient_accumulation_steps", None)
        loss = training().add_terms(loss, divides=divides() if callable(divides) else 1)
    with inside():
        return original(engine, loss, *args, **kwargs)
