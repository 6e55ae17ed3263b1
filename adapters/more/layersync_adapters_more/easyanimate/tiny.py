"""An EasyAnimate of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import EasyAnimateTransformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BCTHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return an EasyAnimate of 3 blocks for latents of 4 channels; in the last 2, both streams share their weights."""
    model: nn.Module = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        num_layers=3,
        mmdit_layers=1,
        time_embed_dim=8,
        text_embed_dim=12,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: 3 latent frames of 4x8, 5 text tokens."""
    return {
        "hidden_states": torch.randn(batch_size, 4, 3, 4, 8),
        "timestep": torch.rand(batch_size) * 1000,
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
    }
