"""The metrics of a run: to where the program logs, else to a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layersync_core.files import append_to_file
from layersync_core.metrics import Meter
from layersync_core.replacing import wrap_once
from layersync_core.run import ranks

_SIMILARITY = "layersync_similarity"
_ROWS = 50


class Latest:
    """A figure that is computed on a device, and read without waiting for it."""

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._known: float | None = None
        self._copy: tuple[Tensor, Any] | None = None

    def __bool__(self) -> bool:
        return self._tensor is not None

    def put(self, value: Tensor) -> None:
        """Replace the figure."""
        self._tensor = value.detach()

    def peek(self) -> float | None:
        """Return the latest value that has arrived."""
        if self._tensor is None or self._tensor.device.type == "cpu":
            return self.wait()
        if self._tensor.device.type != "cuda":
            return self._known
        if self._copy is not None and self._copy[1].query():
            self._known, self._copy = float(self._copy[0]), None
        if self._copy is None:
            here = torch.empty((), dtype=self._tensor.dtype, pin_memory=True)
            here.copy_(self._tensor, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            self._copy = here, done
        return self._known

    def wait(self) -> float | None:
        """Return the value, at the end of a run."""
        if self._tensor is not None:
            self._known = float(self._tensor)
        return self._known


class MetricsLog:
    """Collect metrics on the device; they are read when the program logs, or every fifty steps for a file.

    Args:
        folder: Where to write ``layersync_metrics.jsonl`` if the program logs nowhere; None writes none.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = Path(folder) if folder else None
        self.where = ""
        self._logged = Meter()
        self._step = Meter()
        self._rows: list[tuple[int, dict[str, Tensor]]] = []
        self._count = 0
        self._program_logs = False
        self.first, self.last = Latest(), Latest()

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take the metrics of one loss."""
        for name, value in metrics.items():
            self._logged.add(name, value)
            self._step.add(name, value)
        if _SIMILARITY in metrics:
            self.last.put(metrics[_SIMILARITY])
            if not self.first:
                self.first.put(metrics[_SIMILARITY])

    def step(self) -> None:
        """End an optimiser step."""
        self._count += 1
        row = self._step.read()
        if not self._program_logs and self.folder is not None:
            self._rows.append((self._count, row))
            if len(self._rows) >= _ROWS:
                self._write_rows()

    def take(self, where: str) -> dict[str, float]:
        """Return the means since the last call, for a logger of the program."""
        self._program_logs, self.where = True, f"logged to {where}"
        self._rows.clear()
        return {name: float(value) for name, value in self._logged.read().items()}

    @property
    def waiting(self) -> bool:
        """Whether there is anything to log."""
        return bool(self._logged)

    def close(self) -> None:
        """Write what is left."""
        if not self._program_logs:
            self._write_rows()

    def _write_rows(self) -> None:
        rows, self._rows = self._rows, []
        if not rows or self.folder is None or ranks.rank():
            return
        names = sorted({name for _, row in rows for name in row})
        values = torch.stack([row[name] for _, row in rows for name in names if name in row]).tolist()
        left = iter(values)
        lines = [{"step": step, **{name: next(left) for name in names if name in row}} for step, row in rows]
        path = self.folder / "layersync_metrics.jsonl"
        try:
            append_to_file(path, "".join(json.dumps(line) + "\n" for line in lines))
            self.where = f"metrics in {path}"
        except OSError as error:
            self.where = f"metrics could not be written: {error.strerror or error}"


def with_metrics(log: MetricsLog, values: Any, where: str) -> Any:
    """Return what a program logs, and our metrics beside it."""
    if not isinstance(values, Mapping) or not log.waiting:
        return values
    return {**log.take(where), **values}


def follow(log: MetricsLog) -> None:
    """Log beside what the program logs to tensorboard or wandb without accelerate.

    Called when tensorboard has been imported, and at each step, since a program may start wandb when it pleases.
    """
    tensorboard: Any = sys.modules.get("torch.utils.tensorboard.writer")
    if tensorboard is not None:
        wrap_once(tensorboard.SummaryWriter, "add_scalar", partial(_add_scalar, log))
    run: Any = getattr(sys.modules.get("wandb"), "run", None)
    if run is not None:
        wrap_once(type(run), "log", partial(_log_to_wandb, log))


def _add_scalar(
    log: MetricsLog, original: Any, writer: Any, tag: str, value: Any, global_step: Any = None, *args: Any, **more: Any
) -> Any:
    done = original(writer, tag, value, global_step, *args, **more)
    if log.waiting:
        for name, mean in log.take("tensorboard").items():
            original(writer, name, mean, global_step)
    return done


def _log_to_wandb(log: MetricsLog, original: Any, run: Any, data: Any, *args: Any, **more: Any) -> Any:
    return original(run, with_metrics(log, data, "wandb"), *args, **more)
