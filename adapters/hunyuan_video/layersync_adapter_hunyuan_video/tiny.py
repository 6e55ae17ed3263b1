"""Tiny HunyuanVideo models of every kind, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BCTHW"
timestep = "timestep"
_CHANNELS, _TEXT, _IMAGE = 4, 12, 8
_SIZE: dict[str, Any] = {
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "mlp_ratio": 2.0,
    "rope_axes_dim": (4, 4, 4),
    "text_embed_dim": _TEXT,
}


def tiny_model(image_condition_type: str | None = None) -> nn.Module:
    """Return a HunyuanVideo of 2 dual-stream and 2 single-stream blocks for latents of 4 channels.

    Args:
        image_condition_type: None, or ``token_replace`` for the blocks that modulate the first frame by itself.
    """
    model: nn.Module = HunyuanVideoTransformer3DModel(
        num_single_layers=2, pooled_projection_dim=8, image_condition_type=image_condition_type, **_SIZE
    )
    return model


def tiny_token_replace() -> nn.Module:
    """Return the image-to-video form whose first frame is given."""
    return tiny_model("token_replace")


def tiny_15() -> nn.Module:
    """Return a HunyuanVideo 1.5 of 4 dual-stream blocks."""
    from diffusers import HunyuanVideo15Transformer3DModel

    sizes = {**_SIZE, "num_layers": 4, "patch_size": 2, "text_embed_2_dim": _TEXT, "image_embed_dim": _IMAGE}
    model: nn.Module = HunyuanVideo15Transformer3DModel(**sizes)
    # The second text projection is 2048 wide whatever the configuration says: 4 million weights.
    model.context_embedder_2 = type(model.context_embedder_2)(_TEXT, 8, 24)
    return model


def tiny_framepack() -> nn.Module:
    """Return a FramePack of 2 dual-stream and 2 single-stream blocks."""
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    model: nn.Module = HunyuanVideoFramepackTransformer3DModel(
        num_single_layers=2,
        pooled_projection_dim=8,
        has_image_proj=True,
        image_proj_dim=_IMAGE,
        has_clean_x_embedder=True,
        **_SIZE,
    )
    return model


variants = {
    "HunyuanVideo": tiny_model,
    "HunyuanVideo I2V": tiny_token_replace,
    "HunyuanVideo 1.5": tiny_15,
    "HunyuanVideo FramePack": tiny_framepack,
}


def example_inputs(model: nn.Module, batch_size: int, text: int = 5, image: bool = False) -> dict[str, Any]:
    """Return random arguments of the model's forward: 3 latent frames of 4x6.

    Args:
        model: A model that this module made.
        batch_size: Samples.
        text: Text tokens, one of them padding.
        image: Whether HunyuanVideo 1.5 gets an image; without one its embedding is zero.
    """
    kind = type(model).__name__
    mask = torch.ones(batch_size, text, dtype=torch.long)
    mask[:, -1] = 0
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(batch_size, _CHANNELS, 3, 4, 6),
        "timestep": torch.randint(0, 1000, (batch_size,)).float(),  # 1.5 uses its dtype
        "encoder_hidden_states": torch.randn(batch_size, text, _TEXT),
        "encoder_attention_mask": mask,
    }
    if "15" in kind:
        return inputs | {
            "encoder_hidden_states_2": torch.randn(batch_size, 3, _TEXT),
            "encoder_attention_mask_2": torch.ones(batch_size, 3, dtype=torch.long),
            "image_embeds": torch.randn(batch_size, 2, _IMAGE) * image,
        }
    inputs |= {"pooled_projections": torch.randn(batch_size, 8), "guidance": torch.full((batch_size,), 6000.0)}
    if "Framepack" in kind:
        inputs |= {
            "image_embeds": torch.randn(batch_size, 2, _IMAGE),
            "indices_latents": torch.arange(20, 23),
            "latents_clean": torch.randn(batch_size, _CHANNELS, 2, 4, 6),
            "indices_latents_clean": torch.tensor([0, 19]),
            "latents_history_2x": torch.randn(batch_size, _CHANNELS, 2, 4, 6),
            "indices_latents_history_2x": torch.arange(17, 19),
            "latents_history_4x": torch.randn(batch_size, _CHANNELS, 16, 4, 6),
            "indices_latents_history_4x": torch.arange(1, 17),
        }
    return inputs
