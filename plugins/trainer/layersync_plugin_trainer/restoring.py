"""Restore a resumed run from a checkpoint completely, or fail with one line that names the file."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy
import torch
from accelerate.utils import DistributedType, load
from safetensors import safe_open
from torch import nn

from layersync_core import ConfigError, LayerSyncError, load_states
from layersync_plugin_trainer.checkpoint import Checkpoint
from layersync_plugin_trainer.loop import Trainer

WEIGHTS, OPTIMISER, SCHEDULE, RANDOM = "model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_{}.pkl"
"""Files of accelerate."""
_SPLIT = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


def restore(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Load weights, optimiser, schedule, random numbers, LayerSync's state and the step count from a checkpoint.

    Raises:
        ConfigError: A file is missing, cannot be read, or lacks a trained weight.
    """
    folder, accelerator = checkpoint.folder, trainer.accelerator
    states = load_states(folder)
    if states is None or "" not in states:
        raise ConfigError(f"{folder} has no layersync_state.safetensors of this trainer; resume another checkpoint")
    if accelerator.distributed_type not in _SPLIT:
        _check_weights(folder / WEIGHTS, accelerator.unwrap_model(trainer.model))
    _restore_random_numbers(folder / RANDOM.format(accelerator.process_index), accelerator.device)
    # First, since this error names what doesn't fit; the optimiser's would only count weights.
    trainer.sync.load_state_dict(states[""])
    try:
        # Weights that are not trained (a LoRA's base model) are not in the file.
        accelerator.load_state(str(folder), strict=False)
    except Exception as error:
        parts: dict[str, Any] = {OPTIMISER: trainer.optimizer, SCHEDULE: trainer.scheduler}
        for name, part in parts.items():
            if (folder / name).exists():  # otherwise the error names it
                with _reading(folder / name):
                    part.load_state_dict(load(folder / name))
        raise ConfigError(f"{folder} cannot be read: {_describe(error)}; resume another checkpoint") from error
    trainer.global_step, trainer.history = checkpoint.step, list(checkpoint.history)


def _check_weights(file: Path, model: nn.Module) -> None:
    """Refuse a file that lacks a trained weight, which would silently start again from its initial value."""
    with _reading(file), safe_open(file, framework="pt") as content:
        found = set(content.keys())
    # A weight with several names is in the file under one of them.
    names: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if weight.requires_grad:
            names.setdefault(id(weight), []).append(name)
    if missing := [own[0] for own in names.values() if found.isdisjoint(own)]:
        raise ConfigError(f"{file} has no {missing[0]}, which is trained; resume another checkpoint")


def _restore_random_numbers(file: Path, device: torch.device) -> None:
    # accelerate does the same again, but silently skips what it cannot read.
    with _reading(file):
        states = load(file)
        random.setstate(states["random_state"])
        numpy.random.set_state(states["numpy_random_seed"])
        torch.set_rng_state(states["torch_manual_seed"])
        if device.type == "cuda" and "torch_cuda_manual_seed" in states:
            torch.cuda.set_rng_state(states["torch_cuda_manual_seed"][device.index or 0], device)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except LayerSyncError:
        raise
    except Exception as error:
        raise ConfigError(f"{file} cannot be read: {_describe(error)}; resume another checkpoint") from error


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {shorten(str(error), 200, placeholder=' …')}"
