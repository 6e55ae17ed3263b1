"""An Ovis-Image of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import OvisImageTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "B(HW)(C22)"
grid = 4, 4
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return an Ovis-Image of 1 dual-stream and 2 single-stream blocks for packed latents of 4 channels."""
    model: nn.Module = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 6, 6),
    )
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: 16 image and 5 text tokens."""
    rows = torch.arange(4)
    return {
        "hidden_states": torch.randn(batch_size, 16, 16),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "timestep": torch.rand(batch_size),
        "img_ids": torch.cartesian_prod(torch.zeros(1, dtype=torch.long), rows, rows).float(),
        "txt_ids": torch.zeros(5, 3),
    }
