"""A Lumina-Next of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LuminaNextDiT2DModel
from diffusers.models.embeddings import get_2d_rotary_pos_embed_lumina
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a Lumina-Next of 3 blocks for latents of 4 channels."""
    model: nn.Module = LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=3,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=12,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: latents of 8x8, 5 text tokens."""
    return {
        "hidden_states": 4 * torch.randn(batch_size, 4, 8, 8),
        "timestep": torch.rand(batch_size),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "encoder_mask": torch.ones(batch_size, 5, dtype=torch.long),
        "image_rotary_emb": get_2d_rotary_pos_embed_lumina(16, 8, 8),
        "cross_attention_kwargs": {},
    }
