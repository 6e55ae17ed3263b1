"""Fixtures of the tests of ``layersync run``: inside this process, and as one of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.optim import optimizer as optimizers
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from layersync_core.run import patches
from layersync_core.run import training as of_process
from layersync_core.run.settings import VARIABLE
from layersync_core.run.training import Training
from tests.models import settings
from tests.run.inside import WEIGHT, Launch
from tests.run.processes import ENVIRONMENT, Script

PLACES = [
    (nn.Module, "__init__"),
    (nn.Module, "__setstate__"),
    (torch, "compile"),
    (torch.optim.Optimizer, "__init__"),
    (torch.autograd, "backward"),
    (torch.amp.GradScaler, "scale"),
    (accelerate.Accelerator, "__init__"),
    (accelerate.Accelerator, "prepare"),
    (accelerate.Accelerator, "backward"),
    (accelerate.Accelerator, "log"),
    (accelerate.data_loader.DataLoaderShard, "__iter__"),
    (DataLoader, "__iter__"),
    (SummaryWriter, "add_scalar"),
]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Launch]:
    """Switch ``layersync run`` on in this process as the start-up hook does; everything is undone afterwards."""
    for owner, name in PLACES:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr("sys.excepthook", print)
    logger = logging.getLogger("layersync_core")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "handlers", [])
    for name in ("_exit", "execv", "execve"):
        monkeypatch.setattr(os, name, getattr(os, name))
    hooks = dict(optimizers._global_optimizer_pre_hooks)

    def launch(**more: Any) -> Training:
        given = {**settings(1, 3, WEIGHT), "layersync_status_dir": str(tmp_path), **more}
        monkeypatch.setenv(VARIABLE, json.dumps(given))
        patches._installed.clear()
        of_process.training.cache_clear()
        patches.install("torch")
        patches.install("accelerate")
        return of_process.training()

    yield launch
    patches._installed.clear()
    of_process.training.cache_clear()
    optimizers._global_optimizer_pre_hooks.clear()
    optimizers._global_optimizer_pre_hooks.update(hooks)
    for state in (AcceleratorState, GradientState):
        state._reset_state()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Write a script and return its path."""

    def write(text: str, name: str = "script.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command and return when its program says that it is ready; it is killed when the test ends."""
    started: list[subprocess.Popen[str]] = []

    def begin(words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            words,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
