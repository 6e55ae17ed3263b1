"""How many training forwards may wait for their loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from layersync_core import CaptureError, Forward, only_forward
from layersync_core.capture.policy import exactly_one


def holding(*forwards: Forward) -> Any:
    return SimpleNamespace(forwards=forwards, why_none="it did not run")


def test_exactly_one_refuses_a_second() -> None:
    exactly_one(holding())
    with pytest.raises(CaptureError, match=r"a second training forward ran.*paused"):
        exactly_one(holding(Forward()))


def test_the_only_one() -> None:
    one = Forward()
    assert only_forward(holding(one)) is one
    with pytest.raises(CaptureError, match="no training forward was captured since the last step: it did not run"):
        only_forward(holding())
    with pytest.raises(CaptureError, match="a second training forward"):
        only_forward(holding(one, Forward()))
