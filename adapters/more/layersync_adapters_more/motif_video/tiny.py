"""A Motif-Video of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import MotifVideoTransformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BCTHW"
channels = 4
timestep = "timestep"


def tiny_model(decoder: int = 0) -> nn.Module:
    """Return a Motif-Video of 1 dual-stream and 3 single-stream blocks, for 4 channels plus an image's and its mask.

    Args:
        decoder: How many of the last blocks start again from the embedding.
    """
    model: nn.Module = MotifVideoTransformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=3,
        num_decoder_layers=decoder,
        mlp_ratio=2.0,
        text_embed_dim=12,
        image_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: 3 latent frames of 4x8, 5 text and 3 image tokens."""
    return {
        "hidden_states": torch.randn(batch_size, 9, 3, 4, 8),
        "timestep": torch.rand(batch_size) * 1000,
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "encoder_attention_mask": torch.ones(batch_size, 5, dtype=torch.bool),
        "image_embeds": torch.randn(batch_size, 3, 8),
    }
