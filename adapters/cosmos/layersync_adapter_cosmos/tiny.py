"""Tiny Cosmos models, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CosmosTransformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BCTHW"
timestep = "timestep"
_CHANNELS, _TEXT, _IMAGE = 4, 12, 8


def tiny_model(**settings: Any) -> nn.Module:
    """Return a Cosmos Predict 1 of 4 blocks for latents of 4 channels.

    Args:
        settings: Configuration values that differ.
    """
    sizes: dict[str, Any] = {
        "in_channels": _CHANNELS,
        "out_channels": _CHANNELS,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 4,
        "mlp_ratio": 2.0,
        "text_embed_dim": _TEXT,
        "adaln_lora_dim": 4,
        "max_size": (4, 16, 16),
        "concat_padding_mask": False,  # resizing the mask needs torchvision
    }
    model: nn.Module = CosmosTransformer3DModel(**{**sizes, **settings})
    return model


def tiny_2() -> nn.Module:
    """Return the video-to-world form of Predict 2: a mask channel for conditioning frames, no learned positions."""
    return tiny_model(in_channels=_CHANNELS + 1, extra_pos_embed_type=None)


def tiny_25() -> nn.Module:
    """Return the form of Predict 2.5: projected text, and image tokens beside it."""
    return tiny_model(
        in_channels=_CHANNELS + 1,
        extra_pos_embed_type=None,
        use_crossattn_projection=True,
        crossattn_proj_in_channels=_TEXT,
        encoder_hidden_states_channels=_TEXT,
        img_context_dim_in=_IMAGE,
        img_context_num_tokens=3,
        img_context_dim_out=24,
    )


variants = {"Cosmos Predict 1": tiny_model, "Cosmos Predict 2": tiny_2, "Cosmos Predict 2.5": tiny_25}


def example_inputs(model: nn.Module, batch_size: int, text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward: 3 latent frames of 8x6.

    Args:
        model: A model that this module made.
        batch_size: Samples.
        text: Text tokens.
    """
    config: Any = model.config
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(batch_size, _CHANNELS, 3, 8, 6),
        "timestep": torch.rand(batch_size),
        "encoder_hidden_states": torch.randn(batch_size, text, _TEXT),
        "fps": 16,
    }
    if config.in_channels > _CHANNELS:
        inputs["condition_mask"] = torch.zeros(batch_size, 1, 3, 8, 6)
        inputs["condition_mask"][:, :, 0] = 1
    if config.img_context_dim_in:
        inputs["encoder_hidden_states"] = (inputs["encoder_hidden_states"], torch.randn(batch_size, 3, _IMAGE))
    return inputs
