"""An ERNIE-Image of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ErnieImageTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return an ERNIE-Image of 4 blocks for latents of 4 channels."""
    model: Any = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=4,
        ffn_hidden_size=48,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        text_in_dim=12,
        rope_axes_dim=(4, 6, 6),
    )
    nn.init.normal_(model.adaLN_modulation[-1].weight, std=0.1)  # it starts at zero, where no block does anything
    return model  # type: ignore[no-any-return]


def example_inputs(model: nn.Module, batch_size: int, text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        text: Text tokens, one of them padding.
    """
    return {
        "hidden_states": torch.randn(batch_size, 4, 8, 8),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "text_bth": torch.randn(batch_size, text, 12),
        "text_lens": torch.full((batch_size,), text - 1),
    }
