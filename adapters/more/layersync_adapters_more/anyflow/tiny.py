"""An AnyFlow of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AnyFlowTransformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BTCHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return an AnyFlow of 3 blocks for latents of 4 channels."""
    model: nn.Module = AnyFlowTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=3,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: 3 latent frames of 4x8, each with its own time, 5 text tokens."""
    return {
        "hidden_states": torch.randn(batch_size, 3, 4, 4, 8),
        "timestep": torch.rand(batch_size, 3) * 1000,
        "r_timestep": torch.zeros(batch_size, 3),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
    }
