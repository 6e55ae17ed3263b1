"""tensorboard without accelerate: metrics are logged beside the program's own scalars."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from layersync_core.replacing import wrap_once
from layersync_core.run.metrics_log import MetricsLog
from layersync_core.run.process import training

WATCHES = ("torch.utils.tensorboard",)


def take_hold() -> None:
    """Patch its writer."""
    follow(training().journal.log)


def follow(log: MetricsLog) -> None:
    """Log with a writer that the program has created by now."""
    tensorboard: Any = sys.modules.get("torch.utils.tensorboard.writer")
    if tensorboard is not None:
        wrap_once(tensorboard.SummaryWriter, "add_scalar", partial(_add_scalar, log))


def _add_scalar(
    log: MetricsLog, original: Any, writer: Any, tag: str, value: Any, global_step: Any = None, *args: Any, **more: Any
) -> Any:
    done = original(writer, tag, value, global_step, *args, **more)
    if log.waiting:
        for name, mean in log.take("tensorboard").items():
            original(writer, name, mean, global_step)
    return done
