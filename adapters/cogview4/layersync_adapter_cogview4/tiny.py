"""A CogView4 of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CogView4Transformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"
_CHANNELS, _TEXT = 4, 8


def tiny_model(in_channels: int = _CHANNELS) -> nn.Module:
    """Return a CogView4 of 4 blocks for latents of 4 channels.

    Args:
        in_channels: Channels that go in; more than 4 where a control image is concatenated.
    """
    model: nn.Module = CogView4Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=in_channels,
        out_channels=_CHANNELS,
        num_layers=4,
        text_embed_dim=_TEXT,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(16, 16),
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, text: int = 5, rows: int = 8, columns: int = 8) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: A model that ``tiny_model`` returned.
        batch_size: Samples.
        text: Text tokens, the first of them padding.
        rows: Height of the latents.
        columns: Width of the latents.
    """
    config: Any = model.config
    mask = torch.ones(batch_size, text)
    mask[:, 0] = 0
    size = torch.full((batch_size, 2), 32.0)
    return {
        "hidden_states": torch.randn(batch_size, config.in_channels, rows, columns),
        "encoder_hidden_states": torch.randn(batch_size, text, _TEXT),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "original_size": size,
        "target_size": size,
        "crop_coords": size * 0,
        "attention_mask": mask,
    }
