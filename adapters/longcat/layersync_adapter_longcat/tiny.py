"""A LongCat Image of a few thousand weights, and inputs for it. No package has the video model's class."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor, nn

from layersync_core import Modality

_ROWS = 4  # of 2x2 patches
modality: Modality = "image"
sample, axes = "hidden_states", "B(HW)(C22)"
grid = _ROWS, _ROWS
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a LongCat Image of 2 dual-stream and 2 single-stream blocks for packed latents of 4 channels."""
    model: nn.Module = LongCatImageTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        axes_dims_rope=[4, 6, 6],
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, references: int = 0, text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        references: Reference images, as Image Edit has them; their tokens follow the generated ones.
        text: Text tokens.
    """
    images = 1 + references
    return {
        "hidden_states": torch.randn(batch_size, images * _ROWS**2, 16),
        "encoder_hidden_states": torch.randn(batch_size, text, 12),
        "timestep": torch.rand(batch_size),
        "img_ids": torch.cat([_image_ids(1 + min(image, 1), text) for image in range(images)]),
        "txt_ids": torch.stack([torch.zeros(text), torch.arange(text), torch.arange(text)], dim=-1),
    }


def _image_ids(modality_id: int, start: int) -> Tensor:
    positions = torch.arange(start, start + _ROWS)
    return torch.cartesian_prod(torch.tensor([modality_id]), positions, positions).float()
