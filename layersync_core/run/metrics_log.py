"""The metrics of a run, which go where the program logs, or else to a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layersync_core.files import append_to_file
from layersync_core.run import ranks

SIMILARITY = "layersync_similarity"
_OF_THE_STEP = {"step", "time"}
_ROWS = 50
_KEPT = 10_000
_SECONDS = 10


class Latest:
    """A value computed on a device and read without waiting for it.

    Attributes:
        tensor: The value, 0-dim without a graph; None before there is one.
    """

    def __init__(self) -> None:
        self.tensor: Tensor | None = None
        self._known: float | None = None
        self._copy: tuple[Tensor, Any] | None = None

    def peek(self) -> float | None:
        """Return the latest value that has arrived."""
        if self.tensor is None or self.tensor.device.type == "cpu":
            return self.wait()
        if self.tensor.device.type != "cuda":
            return self._known
        if self._copy is not None and self._copy[1].query():
            self._known, self._copy = float(self._copy[0]), None
        if self._copy is None:
            here = torch.empty((), dtype=self.tensor.dtype, pin_memory=True)
            here.copy_(self.tensor, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            self._copy = here, done
        return self._known

    def wait(self) -> float | None:
        """Wait for the value and return it, at the end of a run."""
        if self.tensor is not None:
            self._known = float(self.tensor)
        return self._known


class MetricsLog:
    """Metrics of the steps, still on the device; read when the program logs, or for a file every fifty steps or
    ten seconds.

    Args:
        folder: Where to write ``layersync_metrics.jsonl`` if the program logs nowhere; None writes no file.

    Attributes:
        fetch: Called before the program gets metrics, to add those that are still pending.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = Path(folder) if folder else None
        self.where = ""
        self.fetch: Callable[[], None] = lambda: None
        self._row: dict[str, list[Tensor]] = {}  # of the current step
        self._rows: list[tuple[int, float, dict[str, list[Tensor]]]] = []
        self._read: dict[str, list[float]] = {}  # of rows already in the file, for a program that logs later
        self._count = 0
        self._program_logs = False
        self.first, self.last = Latest(), Latest()

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the means of an attachment since its last read."""
        for name, value in metrics.items():
            values = self._row.get(name)
            if values is None:
                self._row[name] = [value]
            else:
                values.append(value)
                del values[:-_ROWS]  # without an optimiser a step never ends
        if SIMILARITY in metrics:
            self.last.tensor = metrics[SIMILARITY]
            self.first.tensor = self.last.tensor if self.first.tensor is None else self.first.tensor

    def step(self) -> None:
        """End an optimiser step."""
        self._count += 1
        now = time.time()
        self._rows.append((self._count, now, self._row))
        self._row = {}
        if self._program_logs or self.folder is None:
            del self._rows[:-_KEPT]  # they are read only when the program logs, so that the host does not wait before
        elif len(self._rows) >= _ROWS or now - self._rows[0][1] >= _SECONDS:
            self._write_rows()

    def take(self, where: str) -> dict[str, float]:
        """Return the means since the last call, for a logger of the program."""
        self.fetch()
        self._program_logs, self.where = True, f"logged to {where}"
        self._rows.append((self._count, time.time(), self._row))
        self._row = {}
        self._read_rows()
        read, self._read = self._read, {}
        return {name: sum(values) / len(values) for name, values in read.items()}

    @property
    def waiting(self) -> bool:
        """Whether there is anything to log."""
        self.fetch()
        return bool(self._row or self._rows or self._read)

    def close(self) -> None:
        """Write what is left."""
        self._write_rows()

    def _read_rows(self) -> list[dict[str, float]]:
        """Read all rows from the device at once, and keep the values for ``take``."""
        rows, self._rows = self._rows, []
        lines: list[dict[str, float]] = [{"step": step, "time": round(when, 3)} for step, when, _ in rows]
        tensors = [value for _, _, row in rows for values in row.values() for value in values]
        if len({tensor.device for tensor in tensors}) > 1:
            tensors = [tensor.to(tensors[0].device) for tensor in tensors]
        left = iter(torch.stack(tensors).tolist() if tensors else ())
        for line, (_, _, row) in zip(lines, rows, strict=True):
            for name, values in row.items():
                line[name] = mean = next(left) if len(values) == 1 else sum(islice(left, len(values))) / len(values)
                self._read.setdefault(name, []).append(mean)
        return lines

    def _write_rows(self) -> None:
        if self._program_logs or self.folder is None:
            return
        lines = self._read_rows()
        for values in self._read.values():
            del values[:-_KEPT]
        if not lines or ranks.rank():
            return
        path = self.folder / "layersync_metrics.jsonl"
        try:
            append_to_file(path, "".join(f"{json.dumps(line)}\n" for line in lines if line.keys() > _OF_THE_STEP))
            self.where = f"metrics in {path}"
        except OSError as error:
            self.where = f"metrics could not be written: {error.strerror or error}"


def with_metrics(log: MetricsLog, values: Any, where: str) -> Any:
    """Return what a program logs, with LayerSync's metrics added."""
    if not isinstance(values, Mapping) or not log.waiting:
        return values
    return {**log.take(where), **values}
