"""A MiniMax Music 3 of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import MiniMaxMusic3Transformer1DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "audio"
sample, axes = "hidden_states", "BCL"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a MiniMax Music 3 of 3 blocks for latents of 4 channels."""
    model: nn.Module = MiniMaxMusic3Transformer1DModel(
        in_channels=4,
        condition_dim=6,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=8,
        ff_inner_dim=16,
        rotary_dim=4,
        fourier_embedding_dim=8,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: 8 positions of a sound, each with its condition."""
    return {
        "hidden_states": torch.randn(batch_size, 4, 8),
        "timestep": torch.rand(batch_size),
        "encoder_hidden_states": torch.randn(batch_size, 8, 6),
    }
