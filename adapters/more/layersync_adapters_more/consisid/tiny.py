"""A ConsisID of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConsisIDTransformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BTCHW"
channels = 4
timestep = "timestep"


def tiny_model(face: bool = False) -> nn.Module:
    """Return a ConsisID of 4 blocks for latents of 4 channels, plus those of the image.

    Args:
        face: Whether features of a face are added after every second block.
    """
    model: nn.Module = ConsisIDTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=8,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=12,
        num_layers=4,
        sample_width=8,
        sample_height=4,
        sample_frames=9,
        max_text_seq_length=9,
        use_rotary_positional_embeddings=True,
        is_train_face=face,
        cross_attn_dim_head=8,
        cross_attn_num_heads=1,
        LFE_id_dim=8,
        LFE_vit_dim=8,
        LFE_depth=2,
        LFE_dim_head=8,
        LFE_num_heads=1,
        LFE_num_id_token=2,
        LFE_num_querie=3,
        LFE_output_dim=16,
        LFE_ff_mult=1,
        LFE_num_scale=2,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: 3 latent frames of 4x8, 5 text tokens."""
    config: Any = model.config
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(batch_size, 3, 8, 4, 8),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "image_rotary_emb": (torch.ones(24, 12), torch.zeros(24, 12)),
    }
    if config.is_train_face:
        inputs |= {
            "id_cond": torch.randn(batch_size, 8),
            "id_vit_hidden": [torch.randn(batch_size, 3, 8) for _ in range(2)],
        }
    return inputs
