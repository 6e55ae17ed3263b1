"""A Flux of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from layersync_core import Modality

_ROWS = 4  # of 2x2 patches
modality: Modality = "image"
sample, axes = "hidden_states", "B(HW)(C22)"
grid = _ROWS, _ROWS
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a Flux of 2 dual-stream and 4 single-stream blocks for packed latents of 4 channels."""
    model: nn.Module = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 6, 6),
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, references: int = 0, text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        references: Reference images, as Kontext has them; their tokens follow the generated ones.
        text: Text tokens.
    """
    images = 1 + references
    return {
        "hidden_states": torch.randn(batch_size, images * _ROWS**2, 16),
        "encoder_hidden_states": torch.randn(batch_size, text, 12),
        "pooled_projections": torch.randn(batch_size, 8),
        "timestep": torch.rand(batch_size),
        "img_ids": torch.cat([_image_ids(min(image, 1)) for image in range(images)]),
        "txt_ids": torch.zeros(text, 3),
    }


def _image_ids(first: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(_ROWS), torch.arange(_ROWS), indexing="ij")
    return torch.stack([torch.full_like(rows, first), rows, columns], dim=-1).reshape(-1, 3).float()
