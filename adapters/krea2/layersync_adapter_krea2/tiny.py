"""A Krea 2 of some ten thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Krea2Transformer2DModel
from torch import nn

from layersync_core import Modality

_ROWS = 4  # of 2x2 patches
modality: Modality = "image"
sample, axes = "hidden_states", "B(HW)(C22)"
grid = _ROWS, _ROWS
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a Krea 2 of 4 blocks, plus 1 + 1 text blocks, for packed latents of 4 channels."""
    model: nn.Module = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=12,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, references: int = 0, text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        references: Reference images, which SimpleTuner puts after the generated one.
        text: Text tokens; the last sample has one less.
    """
    places = torch.cartesian_prod(torch.arange(1), torch.arange(_ROWS), torch.arange(_ROWS)).float()
    mask = torch.ones(batch_size, text, dtype=torch.bool)
    mask[-1, -1] = False
    return {
        "hidden_states": torch.randn(batch_size, (1 + references) * _ROWS**2, 16),
        "encoder_hidden_states": torch.randn(batch_size, text, 3, 12),
        "timestep": torch.rand(batch_size),
        "position_ids": torch.cat([torch.zeros(text, 3), places.repeat(1 + references, 1)]),
        "encoder_attention_mask": mask,
    }
