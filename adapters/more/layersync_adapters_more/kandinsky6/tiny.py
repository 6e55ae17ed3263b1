"""A Kandinsky 6 of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Kandinsky6Transformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BTHWC"
channels = 4
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a Kandinsky 6 of 3 blocks for latents of 4 channels, plus those of a condition and its mask."""
    model: nn.Module = Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=12,
        in_text_dim2=8,
        time_dim=8,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(4, 4, 4),
        in_audio_dim=4,
        out_audio_dim=4,
        visual_token_type_num_embeddings=2,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, reference: bool = False, sound: int = 0) -> dict[str, Any]:
    """Return random arguments of the model's forward: 2 latent frames of 4x6.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        reference: Whether there is an extra frame with the image that the video begins with.
        sound: Tokens of sound.
    """
    frames = 2 + reference
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(batch_size, frames, 4, 6, 9),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "pooled_projections": torch.randn(batch_size, 8),
        "timestep": torch.rand(batch_size) * 1000,
    }
    if reference:
        inputs["visual_token_type_ids"] = torch.tensor([[0, 0, 1]] * batch_size)
        inputs["visual_rope_pos"] = (torch.tensor([0, 1, 0]), torch.arange(2), torch.arange(3))
    if sound:
        inputs["audio_hidden_states"] = torch.randn(batch_size, sound, 4)
    return inputs
