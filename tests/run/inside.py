"""What tests of ``layersync run`` inside this process share: loops, losses, and the term by hand."""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as optimizers
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from layersync_core.families.registry import load_tiny
from layersync_core.run import patches
from layersync_core.run import process as of_process
from layersync_core.run.settings import VARIABLE
from layersync_core.run.training import Training
from tests.models import build, generated, gradients_by_autograd, mean_cosine, settings, states_by_hand

WEIGHT = 0.5
Launch = Callable[..., Training]

PLACES = [
    (nn.Module, "__init__"),
    (nn.Module, "__setstate__"),
    (torch, "compile"),
    (torch.optim.Optimizer, "__init__"),
    (torch.autograd, "backward"),
    (torch.amp.GradScaler, "scale"),
    (torch.amp.GradScaler, "step"),
    (accelerate.Accelerator, "__init__"),
    (accelerate.Accelerator, "prepare"),
    (accelerate.Accelerator, "backward"),
    (accelerate.Accelerator, "log"),
    (accelerate.data_loader.DataLoaderShard, "__iter__"),
    (DataLoader, "__iter__"),
    (SummaryWriter, "add_scalar"),
]


@contextmanager
def switched_on(folder: Path) -> Iterator[Launch]:
    """Let ``layersync run`` be switched on in this process as the start-up hook does; everything is undone at the end.

    Args:
        folder: For status and metrics.
    """
    hooks = dict(optimizers._global_optimizer_pre_hooks)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in PLACES:
            patch.setattr(owner, name, getattr(owner, name))
        for name in ("_exit", "execv", "execve"):
            patch.setattr(os, name, getattr(os, name))
        patch.setattr("sys.excepthook", print)
        logger = logging.getLogger("layersync_core")
        patch.setattr(logger, "propagate", True)
        patch.setattr(logger, "handlers", [])

        def launch(**more: Any) -> Training:
            given = {**settings(1, 3, WEIGHT), "layersync_status_dir": str(folder), **more}
            patch.setenv(VARIABLE, json.dumps(given))
            patches._installed.clear()
            of_process.training.cache_clear()
            patches.install("torch")
            patches.install("accelerate")
            return of_process.training()

        try:
            yield launch
        finally:
            patches._installed.clear()
            of_process.training.cache_clear()
            optimizers._global_optimizer_pre_hooks.clear()
            optimizers._global_optimizer_pre_hooks.update(hooks)


def main_loss(output: Any) -> Tensor:
    return getattr(output, "sample", output).square().mean()


def by_hand(model: nn.Module, inputs: dict[str, Any], pair: tuple[int, int] = (0, 2)) -> Tensor:
    """Return main loss plus term, from a forward in which no hook takes part."""
    states = states_by_hand(model, inputs)
    term = -WEIGHT * mean_cosine(states[pair[0]], states[pair[1]], generated(inputs))
    return main_loss(model(**inputs)) + term


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0)


def micro_batches(count: int = 4) -> tuple[nn.Module, list[dict[str, Any]], dict[str, Tensor]]:
    """Return a model, batches for it, and the gradients of the mean of loss plus term over them."""
    model, first = build("dit")
    tiny = load_tiny("dit")
    batches = [first, *(tiny.example_inputs(model, 2) for _ in range(count - 1))]
    untouched = copy.deepcopy(model)
    mean = sum(by_hand(untouched, inputs) for inputs in batches) / count
    return model, batches, gradients_by_autograd(mean, untouched)


def train(model: nn.Module, inputs: dict[str, Any], optimiser: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimiser.zero_grad()
        main_loss(model(**inputs)).backward()
        optimiser.step()


def attach_lora(model: Any) -> nn.Parameter:
    """Train a weight that isn't part of the model, like trainers with their own LoRA."""
    model.requires_grad_(False)
    linear = model.blocks[0].attn1.to_q
    lora = nn.Parameter(0.1 * torch.randn(linear.out_features, linear.in_features))
    original = linear.forward
    linear.forward = lambda x: original(x) + x @ lora.T
    return lora


def library(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> Any:
    """Put a stand-in of a library among the imported modules."""
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module
