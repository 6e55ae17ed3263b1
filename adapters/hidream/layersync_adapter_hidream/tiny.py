"""A HiDream of some ten thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HiDreamImageTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "BCHW"
timestep = "timesteps"


def tiny_model() -> nn.Module:
    """Return a HiDream of 2 dual-stream and 3 single-stream blocks for latents of 4 channels."""
    model: nn.Module = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[12, 10],
        text_emb_dim=8,
        num_routed_experts=2,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=[0, 1, 1, 0, 1],
        # Otherwise a model in training mode returns patches.
        force_inference_output=True,
    )
    return model


def example_inputs(model: nn.Module, batch_size: int, size: tuple[int, int] = (8, 8), text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        size: Height and width of the latents; the model pads those that are not square to 16 tokens.
        text: Tokens of each of the two texts.
    """
    return {
        "hidden_states": torch.randn(batch_size, 4, *size),
        "timesteps": torch.randint(0, 1000, (batch_size,)),
        "encoder_hidden_states_t5": torch.randn(batch_size, text, 12),
        "encoder_hidden_states_llama3": torch.randn(2, batch_size, text, 10),
        "pooled_embeds": torch.randn(batch_size, 8),
    }
