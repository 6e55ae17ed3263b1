"""A Nucleus-Image of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import NucleusMoEImageTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "B(HW)(C22)"
grid = 4, 4
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a Nucleus-Image of 3 blocks for packed latents of 4 channels; all but the first have experts."""
    model: nn.Module = NucleusMoEImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 6, 6),
        mlp_ratio=6.0,  # with 32 channels, the smallest that isn't rounded to zero
        dense_moe_strategy="leave_first_block_dense",
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=2.0,
    )
    for name, weight in model.named_parameters():
        if ".experts." in name:  # the class leaves these uninitialised
            nn.init.normal_(weight, std=0.1)
    return model


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: 16 image and 5 text tokens."""
    return {
        "hidden_states": torch.randn(batch_size, 16, 16),
        "img_shapes": [(1, 4, 4)] * batch_size,
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "encoder_hidden_states_mask": torch.ones(batch_size, 5, dtype=torch.bool),
        "timestep": torch.rand(batch_size),
    }
