"""LayerSync's part of a checkpoint: the schedule's step and the trainable parts, beside what accelerate writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from layersync_core.errors import ConfigError
from layersync_core.run import ranks
from layersync_core.run.training import Training

FILE = "layersync_state.safetensors"
_VERSION = 1


def register(accelerator: Any, training: Training) -> None:
    """Write and read the state file when accelerate writes and reads a checkpoint."""
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: write(Path(folder), training))
    accelerator.register_load_state_pre_hook(lambda models, folder: read(Path(folder), training))


def write(folder: Path, training: Training) -> None:
    """Write the state file into the folder of a checkpoint."""
    if ranks.rank():
        return
    from safetensors.torch import save_file

    step, parts = training.state()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in parts.items()}
    temporary = folder / f"{FILE}.tmp"
    save_file(tensors, temporary, metadata={"layersync": json.dumps({"version": _VERSION, "step": step})})
    temporary.replace(folder / FILE)


def read(folder: Path, training: Training) -> None:
    """Go on where the state file of a checkpoint says."""
    path = folder / FILE
    if not path.is_file():
        training.resumed(None, {})
        return
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("layersync", "{}"))
            parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors has an exception of its own for a file cut short
        training.fail(ConfigError(f"{path} cannot be read: {error}"))
    step = about.get("step")
    if about.get("version") != _VERSION or not isinstance(step, int) or step < 0:
        training.fail(ConfigError(f"{path} is no state file of this version of layersync"))
    training.resumed(step, parts)
