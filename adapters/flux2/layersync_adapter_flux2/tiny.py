"""A Flux.2 of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn

from layersync_core import Modality

_ROWS = 4
modality: Modality = "image"
sample, axes = "hidden_states", "B(HW)(C22)"
grid = _ROWS, _ROWS
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a Flux.2 of 2 dual-stream and 2 single-stream blocks for latents of 16 channels."""
    model: nn.Module = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        timestep_guidance_channels=16,
        mlp_ratio=2.0,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, references: int = 0, text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        references: Reference images; their tokens follow the generated ones.
        text: Text tokens.
    """
    images = 1 + references
    text_ids = torch.zeros(text, 4)
    text_ids[:, 3] = torch.arange(text)
    return {
        "hidden_states": torch.randn(batch_size, images * _ROWS**2, 16),
        "encoder_hidden_states": torch.randn(batch_size, text, 12),
        "timestep": torch.rand(batch_size),
        "guidance": torch.full((batch_size,), 4.0),
        "img_ids": torch.cat([_image_ids(10 * image) for image in range(images)]),
        "txt_ids": text_ids,
    }


def _image_ids(time: int) -> Tensor:
    return torch.cartesian_prod(torch.tensor([time]), torch.arange(_ROWS), torch.arange(_ROWS), torch.arange(1)).float()
