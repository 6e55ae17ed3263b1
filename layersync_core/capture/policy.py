"""A running capture: that it is one, and how many training forwards may wait for their loss, a host's policy."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from torch import nn

from layersync_core.capture.buffer import HiddenStateBuffer
from layersync_core.capture.forward import Forward
from layersync_core.entrypoints import describe_failure, foreign
from layersync_core.errors import CaptureError, ConfigError, LayerSyncError
from layersync_core.protocol import Adapter, CaptureHandle

SECOND_FORWARD = (
    "a second training forward ran before the states of the first were used, and nobody can know which one was meant: "
    "call apply() after each training forward, and run further forwards under torch.no_grad() or "
    "inside `with attachment.paused():`"
)

Policy = Callable[[CaptureHandle], None]
"""What becomes of the training forwards that are held when another one begins; see ``CaptureHandle``."""


def exactly_one(capture: CaptureHandle) -> None:
    """Refuse a training forward while another one waits for its loss.

    Raises:
        CaptureError: One does.
    """
    if capture.forwards:
        raise CaptureError(SECOND_FORWARD)


def only_forward(capture: CaptureHandle) -> Forward:
    """Return the one training forward that a capture holds.

    Raises:
        CaptureError: It holds none, or several.
    """
    held = capture.forwards
    if len(held) > 1:
        raise CaptureError(SECOND_FORWARD)
    if not held:
        raise CaptureError(f"no training forward was captured since the last step: {capture.why_none}")
    return held[0]


def started(adapter: Adapter, model: nn.Module, layers: Collection[int], buffer: HiddenStateBuffer) -> CaptureHandle:
    """Return what an adapter's capture gives.

    Raises:
        ConfigError: The adapter fails, or gives what lacks something, whose hooks are off again.
    """
    handle: Any
    try:
        with foreign():
            handle = adapter.capture(model, layers, buffer)
    except LayerSyncError:
        raise
    except Exception as error:
        raise ConfigError(f"the capture of adapter {adapter.family} fails: {describe_failure(error)}") from error
    if not isinstance(handle, CaptureHandle):
        names = ("enabled", "policy", "forwards", "why_none", "collect", "discard", "paused", "remove")
        lacking = ", ".join(name for name in names if not hasattr(handle, name))
        if hasattr(handle, "remove"):
            handle.remove()  # its hooks are on the model already
        raise ConfigError(f"the capture of adapter {adapter.family} lacks {lacking}; see CaptureHandle")
    return handle
