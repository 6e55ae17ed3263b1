"""A MyTransformer of 61,200 weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from layersync_core import Modality
from torch import nn

from layersync_adapter_tutorial.my_models import MyTransformer

modality: Modality = "image"
sample, axes = "latents", "BCHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a model of random weights."""
    model: nn.Module = MyTransformer(
        hidden_size=32,
        num_heads=2,
        num_layers=4,
        text_dim=24,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        text: Text tokens.
    """
    return {
        "latents": torch.randn(batch_size, 4, 8, 6),
        "prompt_embeds": torch.randn(batch_size, text, 24),
        "timestep": torch.rand(batch_size),
    }
