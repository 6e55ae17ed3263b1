"""How many training forwards may wait for their loss; the host chooses the policy."""

from __future__ import annotations

from collections.abc import Callable

from layersync_core.capture.forward import Forward
from layersync_core.errors import CaptureError
from layersync_core.protocol import CaptureHandle

SECOND_FORWARD = (
    "a second training forward ran before the states of the first were used, so it is ambiguous which one is meant: "
    "call apply() after each training forward, and run further forwards under torch.no_grad() or "
    "inside `with attachment.paused():`"
)

Policy = Callable[[CaptureHandle], None]
"""Decides what happens to the training forwards that are held when another one begins; see ``CaptureHandle``."""


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
