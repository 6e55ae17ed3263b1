"""Lightning: its Fabric runs backward, and its Trainer through that or through torch."""

from __future__ import annotations

import sys
from typing import Any

from layersync_core.replacing import wrap_once
from layersync_core.run.engines import run_backward

WATCHES = ("lightning", "lightning_fabric")


def take_hold() -> None:
    """Take hold of Fabric, in whichever of its two distributions."""
    for name in ("lightning.fabric", "lightning_fabric"):
        module: Any = sys.modules.get(name)
        fabric = getattr(module, "Fabric", None)
        if fabric is not None:
            wrap_once(fabric, "backward", run_backward)
