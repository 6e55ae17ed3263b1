"""A PixArt of a few thousand weights, in the form of Sigma and of Alpha, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a PixArt Sigma of 4 blocks for latents of 4 channels."""
    return _pixart(use_additional_conditions=False)


def tiny_alpha() -> nn.Module:
    """Return a PixArt Alpha, which takes resolution and aspect ratio."""
    return _pixart(use_additional_conditions=True)


variants = {"PixArt Sigma": tiny_model, "PixArt Alpha": tiny_alpha}


def example_inputs(model: nn.Module, batch_size: int, size: tuple[int, int] = (8, 8), text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` or ``tiny_alpha`` returned.
        batch_size: Samples.
        size: Height and width of the latents.
        text: Text tokens.
    """
    conditions: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
    if model.use_additional_conditions:
        conditions = {"resolution": torch.rand(batch_size, 2), "aspect_ratio": torch.rand(batch_size, 1)}
    return {
        "hidden_states": torch.randn(batch_size, 4, *size),
        "encoder_hidden_states": torch.randn(batch_size, text, 10),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "added_cond_kwargs": conditions,
    }


def _pixart(use_additional_conditions: bool) -> nn.Module:
    model: nn.Module = PixArtTransformer2DModel(
        num_attention_heads=2,
        # Alpha's three conditions share the width.
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=4,
        cross_attention_dim=24,
        sample_size=8,
        caption_channels=10,
        use_additional_conditions=use_additional_conditions,
    )
    return model
