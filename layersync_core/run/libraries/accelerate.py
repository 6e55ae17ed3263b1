"""accelerate: models that are prepared, losses and how they are divided, checkpoints, and its trackers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from layersync_core.errors import CaptureError
from layersync_core.replacing import wrap_once
from layersync_core.run import resume
from layersync_core.run.metrics_log import with_metrics
from layersync_core.run.nesting import inside, is_inside
from layersync_core.run.process import training

WATCHES = ("accelerate",)


def take_hold() -> None:
    """Patch its Accelerator."""
    accelerator: Any = sys.modules["accelerate"].Accelerator
    wrap_once(accelerator, "__init__", _accelerating)
    wrap_once(accelerator, "prepare", _preparing)
    wrap_once(accelerator, "backward", _accelerated)
    wrap_once(accelerator, "log", _logging)


def _accelerating(original: Callable[..., Any], accelerator: Any, *args: Any, **kwargs: Any) -> None:
    original(accelerator, *args, **kwargs)
    resume.register(accelerator, training())


def _preparing(original: Callable[..., Any], accelerator: Any, *args: Any, **kwargs: Any) -> Any:
    training().prepare(args)
    return original(accelerator, *args, **kwargs)


def _accelerated(original: Callable[..., Any], accelerator: Any, loss: Any, **kwargs: Any) -> Any:
    kind = str(getattr(accelerator.distributed_type, "value", ""))
    if kind == "MEGATRON_LM":
        training().journal.fail(
            CaptureError("Megatron-LM runs backward by itself, where no term can be added: layersync run refuses it")
        )
    if kind == "DEEPSPEED":
        return original(accelerator, loss, **kwargs)  # DeepSpeed's engine knows how it divides
    if not is_inside():
        loss = training().add_terms(loss, divides=accelerator.gradient_accumulation_steps, library="accelerate")
    with inside():
        return original(accelerator, loss, **kwargs)


def _logging(original: Callable[..., Any], accelerator: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
    if accelerator.trackers:
        values = with_metrics(
            training().journal.log, values, ", ".join(tracker.name for tracker in accelerator.trackers)
        )
    return original(accelerator, values, *args, **kwargs)
