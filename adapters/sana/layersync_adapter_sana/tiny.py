"""A tiny Sana and Sana Video, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"
_CHANNELS, _TEXT = 4, 12
_SIZE: dict[str, Any] = {
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 4,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 12,
    "cross_attention_dim": 24,
    "caption_channels": _TEXT,
    "sample_size": 8,
}


def tiny_model() -> nn.Module:
    """Return a Sana of 4 blocks for latents of 4 channels."""
    return _quiet_text(SanaTransformer2DModel(**_SIZE))


def tiny_video() -> nn.Module:
    """Return a Sana Video of 4 blocks for latents of 4 channels."""
    from diffusers import SanaVideoTransformer3DModel

    return _quiet_text(SanaVideoTransformer3DModel(**_SIZE))


def _quiet_text(model: Any) -> nn.Module:
    # Training starts with a small scale of the text; at 1, text outweighs the image in untrained weights.
    nn.init.normal_(model.caption_norm.weight, 0.01, 0.001)
    return model  # type: ignore[no-any-return]


variants = {"Sana": tiny_model, "Sana Video": tiny_video}


def example_inputs(model: nn.Module, batch_size: int, text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward: latents of 4x8, for Sana Video 3 frames of 8x6.

    Args:
        model: A model that this module made.
        batch_size: Samples.
        text: Text tokens.
    """
    size = (3, 8, 6) if "Video" in type(model).__name__ else (4, 8)
    return {
        "hidden_states": torch.randn(batch_size, _CHANNELS, *size),
        "encoder_hidden_states": torch.randn(batch_size, text, _TEXT),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "encoder_attention_mask": torch.ones(batch_size, text, dtype=torch.long),
    }
