"""An ACE-Step 1.5 of some ten thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AceStepTransformer1DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "audio"
sample, axes = "hidden_states", "BLC"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return an ACE-Step of 4 blocks for latents of 8 channels beside a context of 4."""
    model: nn.Module = AceStepTransformer1DModel(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        in_channels=12,
        audio_acoustic_hidden_dim=8,
        sliding_window=4,
        encoder_hidden_size=10,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, length: int = 18, text: int = 20) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        length: Frames; two make a token.
        text: Tokens of text, lyrics and timbre.
    """
    time = torch.rand(batch_size)
    return {
        "hidden_states": torch.randn(batch_size, length, 8),
        "timestep": time,
        "timestep_r": time,
        "encoder_hidden_states": torch.randn(batch_size, text, 10),
        "context_latents": torch.randn(batch_size, length, 4),
    }
