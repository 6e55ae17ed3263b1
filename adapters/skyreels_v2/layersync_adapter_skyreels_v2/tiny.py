"""Tiny SkyReels V2 models, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import SkyReelsV2Transformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BCTHW"
timestep = "timestep"
_CHANNELS, _TEXT, _IMAGE, _FRAMES = 4, 8, 6, 4


def tiny_model(**settings: Any) -> nn.Module:
    """Return a SkyReels V2 of 4 blocks for latents of 4 channels.

    Args:
        settings: Configuration values that differ.
    """
    sizes: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": _CHANNELS,
        "out_channels": _CHANNELS,
        "text_dim": _TEXT,
        "freq_dim": 16,
        "ffn_dim": 16,
        "num_layers": 4,
    }
    model: nn.Module = SkyReelsV2Transformer3DModel(**{**sizes, **settings})
    return model


def tiny_image_to_video() -> nn.Module:
    """Return the image-to-video form: the image's latents as further channels, and its features beside the text."""
    return tiny_model(in_channels=2 * _CHANNELS, image_dim=_IMAGE, added_kv_proj_dim=24)


def tiny_causal() -> nn.Module:
    """Return the form in which a pair of frames sees itself and the frames before it."""
    return tiny_model(num_frame_per_block=2)


variants = {"SkyReels V2": tiny_model, "SkyReels V2 I2V": tiny_image_to_video, "SkyReels V2 causal": tiny_causal}


def example_inputs(model: nn.Module, batch_size: int, forcing: bool = False) -> dict[str, Any]:
    """Return random arguments of the model's forward: 4 latent frames of 8x6.

    Args:
        model: A model that this module made.
        batch_size: Samples.
        forcing: Whether each frame has a timestep of its own, as in diffusion forcing.
    """
    config: Any = model.config
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(batch_size, config.in_channels, _FRAMES, 8, 6),
        "timestep": torch.randint(0, 1000, (batch_size, _FRAMES) if forcing else (batch_size,)),
        "encoder_hidden_states": torch.randn(batch_size, 5, _TEXT),
    }
    if config.image_dim:
        inputs["encoder_hidden_states_image"] = torch.randn(batch_size, 3, _IMAGE)
    return inputs | {"enable_diffusion_forcing": True} if forcing else inputs
