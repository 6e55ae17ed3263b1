"""LayerSync's part of a checkpoint, beside accelerate's: the schedule's step and the trainable parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layersync_core.errors import LayerSyncError
from layersync_core.run import ranks
from layersync_core.run.training import Training
from layersync_core.state import load_states, save_states


def register(accelerator: Any, training: Training) -> None:
    """Write and read the state file whenever accelerate writes and reads a checkpoint."""
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: write(Path(folder), training))
    accelerator.register_load_state_pre_hook(lambda models, folder: read(Path(folder), training))


def write(folder: Path, training: Training) -> None:
    """Write the state file into the folder of a checkpoint."""
    if not ranks.rank():
        save_states(folder, training.state())


def read(folder: Path, training: Training) -> None:
    """Resume from the state file of a checkpoint."""
    try:
        states = load_states(folder)
    except LayerSyncError as error:
        training.journal.fail(error)
    training.resumed(states)
