"""Tiny CogVideoX models, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BTCHW"
timestep = "timestep"
_CHANNELS, _TEXT, _LENGTH, _FRAMES, _ROWS, _COLUMNS = 4, 8, 5, 4, 8, 6


def tiny_model(**settings: Any) -> nn.Module:
    """Return a CogVideoX 1.0 of 4 blocks for latents of 4 channels.

    Args:
        settings: Configuration values that differ.
    """
    sizes: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": _CHANNELS,
        "out_channels": _CHANNELS,
        "time_embed_dim": 8,
        "text_embed_dim": _TEXT,
        "num_layers": 4,
        "sample_width": _COLUMNS,
        "sample_height": _ROWS,
        "sample_frames": 4 * (_FRAMES - 1) + 1,
        "max_text_seq_length": _LENGTH,
    }
    model: nn.Module = CogVideoXTransformer3DModel(**{**sizes, **settings})
    return model


def tiny_15(**settings: Any) -> nn.Module:
    """Return a CogVideoX 1.5: rotary positions, and patches of 2 frames.

    Args:
        settings: Configuration values that differ.
    """
    rotary: dict[str, Any] = {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False}
    return tiny_model(**{**rotary, **settings})


def tiny_image_to_video() -> nn.Module:
    """Return the image-to-video form of 1.0: learned positions, and the image's latents as extra channels."""
    rotary = {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True}
    return tiny_model(in_channels=2 * _CHANNELS, **rotary)


def tiny_15_image_to_video() -> nn.Module:
    """Return the image-to-video form of 1.5, which also takes an offset embedding."""
    return tiny_15(in_channels=2 * _CHANNELS, ofs_embed_dim=8)


variants = {
    "CogVideoX": tiny_model,
    "CogVideoX I2V": tiny_image_to_video,
    "CogVideoX 1.5": tiny_15,
    "CogVideoX 1.5 I2V": tiny_15_image_to_video,
}


def example_inputs(model: nn.Module, batch_size: int, text: int = _LENGTH) -> dict[str, Any]:
    """Return random arguments of the model's forward: 4 latent frames of 8x6.

    Args:
        model: A model that this module made.
        batch_size: Samples.
        text: Text tokens; models with learned or computed positions take no other number.
    """
    config: Any = model.config
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(batch_size, _FRAMES, config.in_channels, _ROWS, _COLUMNS),
        "encoder_hidden_states": torch.randn(batch_size, text, _TEXT),
        "timestep": torch.randint(0, 1000, (batch_size,)),
    }
    if config.use_rotary_positional_embeddings:
        tokens = _FRAMES // (config.patch_size_t or 1) * (_ROWS // 2) * (_COLUMNS // 2)
        angles = torch.rand(tokens, config.attention_head_dim)
        inputs["image_rotary_emb"] = (angles.cos(), angles.sin())
    if config.ofs_embed_dim:
        inputs["ofs"] = torch.full((1,), 2.0)
    return inputs
