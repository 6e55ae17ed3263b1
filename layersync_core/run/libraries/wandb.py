"""wandb without accelerate: metrics stand beside what the program logs to its run."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from layersync_core.replacing import wrap_once
from layersync_core.run.metrics_log import MetricsLog, with_metrics

WATCHES = ()  # a program may begin a run when it pleases, so this is asked for at each step


def follow(log: MetricsLog) -> None:
    """Log where a run that has begun by now logs."""
    run: Any = getattr(sys.modules.get("wandb"), "run", None)
    if run is not None:
        wrap_once(type(run), "log", partial(_log_to_wandb, log))


def _log_to_wandb(log: MetricsLog, original: Any, run: Any, data: Any, *args: Any, **more: Any) -> Any:
    return original(run, with_metrics(log, data, "wandb"), *args, **more)
