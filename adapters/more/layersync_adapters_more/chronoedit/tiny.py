"""A ChronoEdit of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ChronoEditTransformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BCTHW"
channels = 4
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a ChronoEdit of 3 blocks for latents of 4 channels, plus those of the image to edit and its mask."""
    model: nn.Module = ChronoEditTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=9,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
        image_dim=8,
        added_kv_proj_dim=24,
        rope_temporal_skip_len=8,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: 2 latent frames of 4x8, 5 text and 3 image tokens."""
    return {
        "hidden_states": torch.randn(batch_size, 9, 2, 4, 8),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "encoder_hidden_states_image": torch.randn(batch_size, 3, 8),
    }
