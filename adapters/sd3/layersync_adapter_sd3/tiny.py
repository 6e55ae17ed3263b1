"""An SD3 of a few thousand weights, its 3.5 form, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"
_SIZE: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "caption_projection_dim": 32,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 8,
    "pos_embed_max_size": 8,
}


def tiny_model() -> nn.Module:
    """Return an SD3 of 4 blocks for latents of 4 channels."""
    model: nn.Module = SD3Transformer2DModel(num_layers=4, **_SIZE)
    return model


def tiny_sd35() -> nn.Module:
    """Return the 3.5 form: normalised queries, and a second attention of the image alone in the first blocks."""
    model: nn.Module = SD3Transformer2DModel(num_layers=4, dual_attention_layers=(0, 1), qk_norm="rms_norm", **_SIZE)
    return model


variants = {"Stable Diffusion 3": tiny_model, "Stable Diffusion 3.5": tiny_sd35}


def example_inputs(model: nn.Module, batch_size: int, text: int = 5, rows: int = 8, columns: int = 8) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        text: Text tokens.
        rows: Height of the latents.
        columns: Width of the latents.
    """
    return {
        "hidden_states": torch.randn(batch_size, 4, rows, columns),
        "encoder_hidden_states": torch.randn(batch_size, text, 12),
        "pooled_projections": torch.randn(batch_size, 8),
        "timestep": torch.randint(0, 1000, (batch_size,)),
    }
