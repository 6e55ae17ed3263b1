"""A Mochi of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import MochiTransformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BCTHW"
timestep = "timestep"
_CHANNELS, _TEXT = 4, 8


def tiny_model() -> nn.Module:
    """Return a Mochi of 4 blocks for latents of 4 channels."""
    model: nn.Module = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=4,
        pooled_projection_dim=8,
        in_channels=_CHANNELS,
        text_embed_dim=_TEXT,
        time_embed_dim=4,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward: 3 latent frames of 8x6.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        text: Text tokens, the last of them padding.
    """
    mask = torch.ones(batch_size, text, dtype=torch.bool)
    mask[:, -1] = False
    return {
        "hidden_states": torch.randn(batch_size, _CHANNELS, 3, 8, 6),
        "encoder_hidden_states": torch.randn(batch_size, text, _TEXT),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "encoder_attention_mask": mask,
    }
