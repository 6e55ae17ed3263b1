"""A Wan of a few thousand weights, its VACE and Animate forms, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BCTHW"
timestep = "timestep"
_SIZE: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 4,
}


def tiny_model() -> nn.Module:
    """Return a Wan of 4 blocks for latents of 4 channels."""
    model: nn.Module = WanTransformer3DModel(in_channels=4, **_SIZE)
    return model


def tiny_vace() -> nn.Module:
    """Return the VACE form: hints of 2 further blocks are added after blocks 1 and 3."""
    from diffusers import WanVACETransformer3DModel

    model: nn.Module = WanVACETransformer3DModel(in_channels=4, vace_layers=[0, 2], vace_in_channels=6, **_SIZE)
    return model


def tiny_animate() -> nn.Module:
    """Return the Animate form: features of a face video are added after every second block."""
    from diffusers import WanAnimateTransformer3DModel

    model: nn.Module = WanAnimateTransformer3DModel(
        in_channels=12,
        latent_channels=4,
        image_dim=4,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
        **_SIZE,
    )
    return model


variants = {"Wan": tiny_model, "Wan VACE": tiny_vace, "Wan Animate": tiny_animate}


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: 3 latent frames of 8x8."""
    kind = type(model).__name__
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(batch_size, 4, 3, 8, 8),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "encoder_hidden_states": torch.randn(batch_size, 5, 16),
    }
    if "VACE" in kind:
        inputs["control_hidden_states"] = torch.randn(batch_size, 6, 3, 8, 8)
    elif "Animate" in kind:
        inputs |= {
            "hidden_states": torch.randn(batch_size, 12, 3, 8, 8),
            "encoder_hidden_states_image": torch.randn(batch_size, 12, 4),
            "pose_hidden_states": torch.randn(batch_size, 4, 2, 8, 8),
            "face_pixel_values": torch.randn(batch_size, 3, 5, 16, 16),
        }
    return inputs
