"""DeepSpeed: its engine runs backward, and a pipeline of several stages cannot be trained.

Under accumulation it divides by the number of losses, but not always the loss itself: from 0.18.3 on an engine divides
the gradient of its model's output, which a term bypasses; 0.19.8 does so where backward is called directly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from torch import Tensor

from layersync_core.capture.graph import tensors_in
from layersync_core.errors import CaptureError
from layersync_core.replacing import wrap_once
from layersync_core.run.nesting import inside, is_inside
from layersync_core.run.process import training

WATCHES = ("deepspeed",)
_NEAR = 1e-3  # tolerance for a bfloat16 gradient


def take_hold() -> None:
    """Patch its engines."""
    engine: Any = sys.modules["deepspeed"].DeepSpeedEngine
    wrap_once(engine, "backward", _running_backward)
    for name, wrapper in (("scale", _scaling), ("_backward_prologue", _beginning)):
        if hasattr(engine, name):
            wrap_once(engine, name, wrapper)
    pipe = sys.modules.get("deepspeed.runtime.pipe.engine")
    if pipe is not None:
        wrap_once(pipe.PipelineEngine, "__init__", _pipeline)


def _running_backward(original: Callable[..., Any], engine: Any, loss: Any, *args: Any, **kwargs: Any) -> Any:
    if not is_inside():
        losses = int(engine.gradient_accumulation_steps())
        if not kwargs.get("scale_wrt_gas", True):
            loss = training().add_terms(loss)
        else:
            results = hasattr(engine, "_scale_wrt_gas")
            past = losses if results else 1
            with_term = training().add_terms(loss, divides=losses, past=past, library="DeepSpeed")
            if losses > 1 and with_term is not loss and engine not in _checked:
                _checked.add(engine)
                with_term.register_hook(_Expected(losses, divided=not results))
            loss = with_term
    with inside():
        return original(engine, loss, *args, **kwargs)


_checked: WeakSet[Any] = WeakSet()


class _Expected:
    """Checks, in the first backward of an engine, that its loss was divided as this version is known to do."""

    def __init__(self, losses: int, divided: bool) -> None:
        self._losses, self._divided = losses, divided

    def __call__(self, gradient: Tensor) -> None:
        # A loss scale for float16 is far above both.
        other = 1.0 if self._divided else 1 / self._losses
        if abs(float(gradient) / other - 1) < _NEAR:
            training().journal.fail(
                CaptureError(
                    f"this version of DeepSpeed divides by its {self._losses} accumulation steps in a place not yet "
                    "known, so the term would not be scaled like the loss; train with 1, or with DeepSpeed 0.19.8"
                )
            )


def _scaling(original: Callable[..., Any], engine: Any, loss: Any) -> Any:
    if is_inside():
        return original(engine, loss)
    losses = int(engine.gradient_accumulation_steps())
    with inside():
        scaled = original(engine, training().add_terms(loss, divides=losses, past=losses, library="DeepSpeed"))
    for result in tensors_in(scaled):
        training().terms.note_made(result)
    return scaled


def _beginning(original: Callable[..., Any], engine: Any) -> Any:
    handled = ("_running_engine_backward", "_manual_backward_expected")
    direct = not any(getattr(engine, name, False) for name in handled)
    losses = int(engine.gradient_accumulation_steps())
    if direct and losses > 1 and training().terms.targets and training().courses.accumulation_steps is None:
        training().journal.fail(
            CaptureError(
                f"loss.backward() was called beside a DeepSpeed engine with {losses} accumulation steps, which divides "
                "in a place that the term bypasses; call engine.backward(loss), or give "
                f"--layersync_accumulation_steps {losses}"
            )
        )
    return original(engine)


def _pipeline(original: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> None:
    original(engine, *args, **kwargs)
    if engine.num_stages > 1:
        training().journal.fail(
            CaptureError(
                f"a DeepSpeed pipeline with {engine.num_stages} stages has student and teacher in different processes, "
                "which layersync run refuses; train with one stage"
            )
        )
