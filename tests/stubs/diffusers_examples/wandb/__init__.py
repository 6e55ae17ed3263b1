"""Stands in for wandb: each call of log becomes one line of JSON in wandb.jsonl of the folder WANDB_DIR.

The Cosmos script cannot log to tensorboard: it hands its arguments to the tracker, and one of them is a dict.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

config = SimpleNamespace(update=lambda values, allow_val_change=False: None)


class _Run:
    def __init__(self) -> None:
        folder = Path(os.environ["WANDB_DIR"])
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "wandb.jsonl"

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def finish(self) -> None:
        pass


def init(project: str) -> _Run:
    return _Run()
