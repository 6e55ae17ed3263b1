"""A CogView3-Plus of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CogView3PlusTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a CogView3-Plus of 3 blocks for latents of 4 channels."""
    model: nn.Module = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=12,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: latents of 8x8, 5 text tokens."""
    size = torch.full((batch_size, 2), 64)
    return {
        "hidden_states": torch.randn(batch_size, 4, 8, 8),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "original_size": size,
        "target_size": size,
        "crop_coords": torch.zeros(batch_size, 2, dtype=torch.long),
    }
