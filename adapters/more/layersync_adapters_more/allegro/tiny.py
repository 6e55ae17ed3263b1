"""An Allegro of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AllegroTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BCTHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return an Allegro of 3 blocks for latents of 4 channels."""
    model: nn.Module = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=4,
        sample_frames=3,
        caption_channels=12,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: 3 latent frames of 4x8, 5 text tokens."""
    *angles, frames, rows, columns = get_3d_rotary_pos_embed_allegro(12, ((0, 0), (2, 4)), (2, 4), 3)
    places = torch.cartesian_prod(frames.long(), rows.long(), columns.long()).T[:, None]
    return {
        "hidden_states": torch.randn(batch_size, 4, 3, 4, 8),
        "encoder_hidden_states": torch.randn(batch_size, 1, 5, 12),
        "timestep": torch.rand(batch_size) * 1000,
        "attention_mask": torch.ones(batch_size, 3, 4, 8),
        "encoder_attention_mask": torch.ones(batch_size, 5),
        "image_rotary_emb": (tuple(angles), tuple(places)),
    }
