"""A Chroma of a few thousand weights, and inputs for it."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from diffusers import ChromaTransformer2DModel
from torch import nn

from layersync_core import Modality

_ROWS = 4  # of 2x2 patches
modality: Modality = "image"
sample, axes = "hidden_states", "B(HW)(C22)"
grid = _ROWS, _ROWS
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a Chroma of 2 dual-stream and 2 single-stream blocks for packed latents of 4 channels."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)  # diffusers' own import
        model: nn.Module = ChromaTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=12,
            axes_dims_rope=(4, 6, 6),
            approximator_num_channels=8,
            approximator_hidden_dim=16,
            approximator_layers=1,
        )
    return model


def example_inputs(model: nn.Module, batch_size: int, text: int = 5, padding: int = 0) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        text: Text tokens.
        padding: How many of these are padding, which the attention mask leaves out.
    """
    image_ids = torch.cartesian_prod(torch.arange(1), torch.arange(_ROWS), torch.arange(_ROWS)).float()
    mask = torch.ones(batch_size, text + _ROWS**2)
    mask[:, text - padding : text] = 0
    return {
        "hidden_states": torch.randn(batch_size, _ROWS**2, 16),
        "encoder_hidden_states": torch.randn(batch_size, text, 12),
        "timestep": torch.rand(batch_size),
        "img_ids": image_ids,
        "txt_ids": torch.zeros(text, 3),
        "attention_mask": mask.bool(),
    }
