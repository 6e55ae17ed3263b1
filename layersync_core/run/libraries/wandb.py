"""wandb without accelerate: metrics are logged beside what the program logs to its run."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from layersync_core.replacing import wrap_once
from layersync_core.run.metrics_log import MetricsLog, with_metrics

WATCHES = ()  # a program may begin a run at any time, so this is checked at each step


def follow(log: MetricsLog) -> None:
    """Log to a run that has begun by now."""
    run: Any = getattr(sys.modules.get("wandb"), "run", None)
    if run is not None:
        wrap_once(type(run), "log", partial(_log_to_wandb, log))


def _log_to_wandb(log: MetricsLog, original: Any, run: Any, data: Any, *args: Any, **more: Any) -> Any:
    return original(run, with_metrics(log, data, "wandb"), *args, **more)
