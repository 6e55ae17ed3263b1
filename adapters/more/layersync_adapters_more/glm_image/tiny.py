"""A GLM-Image of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import GlmImageTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a GLM-Image of 3 blocks for latents of 4 channels."""
    model: nn.Module = GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=12,
        time_embed_dim=8,
        condition_dim=4,
        prior_vq_quantizer_codebook_size=16,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: latents of 8x8, 5 text tokens."""
    return {
        "hidden_states": torch.randn(batch_size, 4, 8, 8),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "prior_token_id": torch.randint(0, 16, (batch_size, 16)),
        "prior_token_drop": torch.zeros(batch_size, 16, dtype=torch.bool),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "target_size": torch.full((batch_size, 2), 64.0),
        "crop_coords": torch.zeros(batch_size, 2),
    }
