"""An Ideogram 4 of some ten thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Ideogram4Transformer2DModel
from torch import nn

from layersync_core import Modality

_ROWS = 4  # of 2x2 patches
modality: Modality = "image"
sample, axes = "hidden_states", "B(HW)(C22)"
grid = _ROWS, _ROWS
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return an Ideogram 4 of 4 blocks for packed latents of 4 channels."""
    model: nn.Module = Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        intermediate_size=32,
        adaln_dim=8,
        llm_features_dim=12,
        rope_theta=10_000,
        mrope_section=(2, 1, 1),
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, text: int = 0) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        text: Text tokens, in the same sequence as the image; in the last sample one of them is padding.
    """
    length = text + _ROWS**2
    rows = torch.arange(_ROWS)
    indicator = torch.tensor([3] * text + [2] * _ROWS**2).repeat(batch_size, 1)
    segments = torch.ones(batch_size, length, dtype=torch.long)
    if text:
        indicator[-1, 0], segments[-1, 0] = 0, -1
    places = torch.cat([torch.arange(text)[:, None].expand(-1, 3), 100 + torch.cartesian_prod(rows[:1], rows, rows)])
    return {
        "hidden_states": torch.randn(batch_size, length, 16),
        "timestep": torch.rand(batch_size),
        "encoder_hidden_states": torch.randn(batch_size, length, 12),
        "position_ids": places.expand(batch_size, -1, -1),
        "segment_ids": segments,
        "indicator": indicator,
    }
