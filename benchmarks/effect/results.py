"""The raw results of a run: one JSON file that a run adds to, arm by arm."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.effect.arms import ARMS, Job, Scale
from layersync_core.errors import ConfigError
from layersync_core.files import read_json
from layersync_plugin_trainer.report import versions

FILE = "results.json"


class Results:
    """What was trained so far.

    Attributes:
        scale: How much is trained and measured.
        records: Raw results of each finished training, by its key.
    """

    def __init__(self, folder: Path, scale: Scale) -> None:
        """Read what the folder holds already.

        Raises:
            ConfigError: The folder cannot be written, or holds the results of a run of another kind.
        """
        self.scale = scale
        self.records: dict[str, dict[str, Any]] = {}
        self._file = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {folder}: {error.strerror}") from None
        if not os.access(folder, os.W_OK):
            raise ConfigError(f"cannot write to {folder}")
        if not self._file.exists():
            return
        found = read_json(self._file)
        records = found.get("records")
        if found.get("scale") != asdict(scale) or not isinstance(records, dict):
            raise ConfigError(
                f"{self._file} is of a run with other settings (or of another version); give another --output_dir"
            )
        self.records = records

    def missing(self, jobs: list[Job]) -> list[Job]:
        """Return the jobs without a result."""
        return [job for job in jobs if job.key not in self.records]

    def add(self, record: dict[str, Any]) -> None:
        """Add a training's results and write the file, whole or not at all."""
        self.records[Job(record["task"], record["arm"], record["seed"], record["steps"]).key] = record
        # One line for each training, in the order of the arms, whatever order they ended in.
        order = sorted(self.records, key=lambda key: _place(self.records[key]))
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(self.records[key])}" for key in order)
        head = json.dumps({"scale": asdict(self.scale), "machine": _machine()})[1:-1]
        draft = self._file.with_suffix(".part")
        draft.write_text(f'{{{head}, "records": {{\n{lines}\n}}}}\n')
        os.replace(draft, self._file)


def _place(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["task"], list(ARMS).index(record["arm"]), record["seed"]


def _machine() -> dict[str, Any]:
    return {"python": platform.python_version(), **versions(), "device": "cuda" if torch.cuda.is_available() else "cpu"}
