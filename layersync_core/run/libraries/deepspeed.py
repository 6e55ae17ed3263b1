"""DeepSpeed: its engine runs backward, and a pipeline of several stages cannot be trained."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from layersync_core.errors import CaptureError
from layersync_core.replacing import wrap_once
from layersync_core.run.engines import run_backward
from layersync_core.run.process import training

WATCHES = ("deepspeed",)


def take_hold() -> None:
    """Take hold of its engines."""
    deepspeed: Any = sys.modules["deepspeed"]
    wrap_once(deepspeed.DeepSpeedEngine, "backward", run_backward)
    pipe = sys.modules.get("deepspeed.runtime.pipe.engine")
    if pipe is not None:
        wrap_once(pipe.PipelineEngine, "__init__", _pipeline)


def _pipeline(original: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> None:
    original(engine, *args, **kwargs)
    if engine.num_stages > 1:
        training().journal.fail(
            CaptureError(
                f"a DeepSpeed pipeline of {engine.num_stages} stages has student and teacher in different processes: "
                "layersync run refuses it; train with one stage"
            )
        )
