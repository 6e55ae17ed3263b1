# Shapes: B batch, S tokens, D channels
"""The third table of `benchmarks.step`: calls whose captions and buckets change at every step."""

from __future__ import annotations

import random
import time
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from benchmarks.measure import median, seconds
from layersync_core import attach

_FIRST = 8  # by then every call layout has been measured
_BUCKETS = [(rows, columns) for rows in (8, 12, 16) for columns in (8, 12, 16)]


def _flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=32,
        num_attention_heads=8,
        joint_attention_dim=32,
        pooled_projection_dim=8,
        axes_dims_rope=(8, 12, 12),
    )


def _inputs(draw: random.Random, device: torch.device) -> dict[str, Any]:
    rows, columns = draw.choice(_BUCKETS)
    text = draw.randint(20, 120)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    inputs = {
        "hidden_states": torch.randn(2, rows * columns, 16),
        "encoder_hidden_states": torch.randn(2, text, 32),
        "pooled_projections": torch.randn(2, 8),
        "timestep": torch.rand(2),
        "img_ids": torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).float(),
        "txt_ids": torch.zeros(text, 3),
    }
    return {name: value.to(device) for name, value in inputs.items()}


def print_changing(trainings: int, steps: int, device: torch.device) -> None:
    """Print what the guard costs in the first steps of a training, and after them.

    Args:
        trainings: Number of new trainings.
        steps: Steps per training.
        device: Where they run.
    """
    torch.manual_seed(0)
    models = [_flux().to(device) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    settings = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}
    first: list[float] = []
    early: list[float] = []
    later: list[float] = []
    for number in range(-1, trainings):
        draw = random.Random(number)
        syncs = [attach(models[guard], {**settings, "layersync_guard": bool(guard)}) for guard in (0, 1)]
        for step in range(steps):
            inputs = _inputs(draw, device)
            took = [0.0, 0.0]
            for which in (step % 2, 1 - step % 2):
                took[which] = seconds(lambda: _step(models[which], syncs[which], inputs), device, time.process_time)  # noqa: B023
            if number >= 0:
                (early if step < _FIRST else later).append(took[1] / took[0])
                if step == 0:
                    first.append((took[1] - took[0]) * 1e3)
        for sync in syncs:
            sync.remove()
    for name, values in (("ms first", first), (f"1 to {_FIRST}", early), (f"{_FIRST + 1} to {steps}", later)):
        middle, low, high = median(values)
        print(f"{name:>10} | {middle:8.4f} ({low:.4f} to {high:.4f})", flush=True)


def _step(model: nn.Module, sync: Any, inputs: dict[str, Any]) -> None:
    loss = model(**inputs).sample.square().mean()
    sync.apply(loss).backward()
    model.zero_grad()
    sync.metrics()
