"""The default model: a small class-conditional DiT for 8x8 digits, in the form of an adapter's ``tiny`` module."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"
labels = "class_labels"
CLASSES = 10


def tiny_model() -> nn.Module:
    """Return 8 blocks of width 64 (0.8 M weights): 16 tokens of 2x2 pixels, one label for each digit."""
    model: nn.Module = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=1,
        num_layers=8,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return forward arguments: hidden_states (B, 1, 8, 8), timestep (B,) in 0 to 1000, class_labels (B,)."""
    values: dict[str, Tensor] = {
        "hidden_states": torch.randn(batch_size, 1, 8, 8),
        "timestep": torch.full((batch_size,), 500.0),
        "class_labels": torch.arange(batch_size) % CLASSES,
    }
    return dict(values)


def classes(model: nn.Module) -> int:
    """Return the number of digits."""
    return CLASSES
