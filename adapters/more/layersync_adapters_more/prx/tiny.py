"""A PRX of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import PRXTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a PRX of 3 blocks for latents of 4 channels."""
    model: nn.Module = PRXTransformer2DModel(
        in_channels=4, context_in_dim=12, hidden_size=16, mlp_ratio=2, num_heads=2, depth=3, axes_dim=[4, 4]
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: latents of 8x8, 5 text tokens."""
    return {
        "hidden_states": torch.randn(batch_size, 4, 8, 8),
        "timestep": torch.rand(batch_size),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "attention_mask": torch.ones(batch_size, 5, dtype=torch.bool),
    }
