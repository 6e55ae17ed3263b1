"""A Flux.3 of some ten thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Flux3Transformer2DModel
from torch import Tensor, nn

from layersync_core import Modality

_ROWS = 4  # of 2x2 patches
modality: Modality = "image"
sample, axes = "hidden_states", "B(HW)(C22)"
grid = _ROWS, _ROWS
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a Flux.3 of 2 image blocks and 4 joint ones for packed latents of 4 channels."""
    model: nn.Module = Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        timestep_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, references: int = 0, text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        references: Reference images, as large as the generated one.
        text: Text tokens.
    """
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(batch_size, _ROWS**2, 16),
        "encoder_hidden_states": torch.randn(batch_size, text, 12),
        "timestep": torch.rand(batch_size),
        "img_ids": _places(0),
        "txt_ids": torch.cat([torch.zeros(text, 3), torch.arange(float(text))[:, None]], dim=1),
    }
    if references:
        inputs["image_cond_hidden_states"] = torch.randn(batch_size, references * _ROWS**2, 16)
        inputs["image_cond_ids"] = torch.cat([_places(-1 - index) for index in range(references)])
    return inputs


def _places(image: int) -> Tensor:
    """Return (S, 4): the position of an image's tokens in time, rows and columns, and the number of the image."""
    rows = torch.arange(_ROWS)
    return torch.cartesian_prod(torch.zeros(1), rows.float(), rows.float(), torch.tensor([float(image)]))
