"""An AuraFlow of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AuraFlowTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return an AuraFlow of 2 joint and 2 single blocks for latents of 4 channels."""
    model: nn.Module = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=32,
        pos_embed_max_size=16,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, text: int = 5, rows: int = 8, columns: int = 8) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        text: Text tokens; the model puts 8 registers before them.
        rows: Height of the latents.
        columns: Width of the latents.
    """
    return {
        "hidden_states": torch.randn(batch_size, 4, rows, columns),
        "encoder_hidden_states": torch.randn(batch_size, text, 12),
        "timestep": torch.rand(batch_size),
    }
