"""Lightning: Fabric runs backward itself, and the Trainer does so through Fabric or torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from layersync_core.replacing import wrap_once
from layersync_core.run.nesting import inside, is_inside
from layersync_core.run.process import training

WATCHES = ("lightning", "lightning_fabric")


def take_hold() -> None:
    """Patch Fabric, in either of its two distributions."""
    for name in ("lightning.fabric", "lightning_fabric"):
        module: Any = sys.modules.get(name)
        fabric = getattr(module, "Fabric", None)
        if fabric is not None:
            wrap_once(fabric, "backward", _backward)


def _backward(original: Callable[..., Any], fabric: Any, loss: Any, *args: Any, **kwargs: Any) -> Any:
    if type(getattr(fabric, "strategy", None)).__name__ == "DeepSpeedStrategy":
        return original(fabric, loss, *args, **kwargs)  # DeepSpeed's engine knows how it divides
    if not is_inside():
        loss = training().add_terms(loss, divides=1, library="Fabric")
    with inside():
        return original(fabric, loss, *args, **kwargs)
