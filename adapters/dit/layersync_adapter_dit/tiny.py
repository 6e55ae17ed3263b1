"""A DiT of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"
labels = "class_labels"


def tiny_model() -> nn.Module:
    """Return a class-conditional DiT of 6 blocks for one-channel 8x8 images."""
    model: nn.Module = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=1,
        out_channels=1,
        num_layers=6,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward."""
    return {
        "hidden_states": torch.randn(batch_size, 1, 8, 8),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "class_labels": torch.randint(0, 10, (batch_size,)),
    }


def classes(model: nn.Module) -> int:
    """Return how many classes a DiT knows."""
    config: Any = model.config
    return int(config.num_embeds_ada_norm)
