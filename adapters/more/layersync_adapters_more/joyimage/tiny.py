"""JoyImage models of a few thousand weights, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import JoyImageEditTransformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCTHW"
timestep = "timestep"
_SIZE: dict[str, Any] = {
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 12,
    "mlp_width_ratio": 2.0,
    "num_layers": 3,
    "rope_dim_list": [4, 6, 6],
}


def tiny_model() -> nn.Module:
    """Return a JoyImage Edit of 3 blocks for latents of 4 channels."""
    model: nn.Module = JoyImageEditTransformer3DModel(**_SIZE)
    return model


def tiny_plus() -> nn.Module:
    """Return a JoyImage Edit Plus of 3 blocks for latents of 4 channels."""
    from diffusers import JoyImageEditPlusTransformer3DModel

    model: nn.Module = JoyImageEditPlusTransformer3DModel(**_SIZE)
    return model


variants = {"JoyImage Edit": tiny_model, "JoyImage Edit Plus": tiny_plus}


def example_inputs(model: nn.Module, batch_size: int, references: int = 0) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: A JoyImage Edit.
        batch_size: Samples.
        references: Images to edit, before the generated one.
    """
    images = [1 + references] if references else []
    return {
        "hidden_states": torch.randn(batch_size, *images, 4, 1, 8, 8),
        "timestep": torch.rand(batch_size) * 1000,
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
    }


def inputs_plus(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: packed patches, of samples with references of different sizes.

    Args:
        model: A JoyImage Edit Plus.
        batch_size: 2 samples: one with a reference, one with two.
    """
    shapes = [[(1, 2, 4), (1, 2, 2)], [(1, 2, 2), (1, 2, 4), (1, 1, 2)]][:batch_size]
    return {
        "hidden_states": torch.randn(batch_size, 14, 4, 1, 2, 2),
        "timestep": torch.rand(batch_size) * 1000,
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "encoder_hidden_states_mask": torch.ones(batch_size, 5),
        "shape_list": shapes,
    }
