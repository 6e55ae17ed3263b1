"""A HunyuanDiT of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HunyuanDiT2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a HunyuanDiT of 4 blocks for latents of 4 channels; the last also takes the output of the first."""
    model: nn.Module = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=4,
        mlp_ratio=2.0,
        cross_attention_dim=12,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        text_len=5,
        text_len_t5=4,
        use_style_cond_and_image_meta_size=False,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: latents of 8x8, 5 tokens of one text encoder and 4 of another."""
    return {
        "hidden_states": torch.randn(batch_size, 4, 8, 8),
        "timestep": torch.rand(batch_size) * 1000,
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "text_embedding_mask": torch.ones(batch_size, 5, dtype=torch.long),
        "encoder_hidden_states_t5": torch.randn(batch_size, 4, 16),
        "text_embedding_mask_t5": torch.ones(batch_size, 4, dtype=torch.long),
        "image_rotary_emb": (torch.ones(16, 8), torch.zeros(16, 8)),
    }
