"""An SDXL UNet of some ten thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "sample", "BCHW"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a UNet of 7 blocks in SDXL's form, for latents of 4 channels: 1 + 1 down, 1 in the middle, 2 + 2 up."""
    model: nn.Module = UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16, 24),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=(1, 2, 3),
        norm_num_groups=4,
        transformer_layers_per_block=1,
        cross_attention_dim=12,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
    )
    return model


def example_inputs(
    model: nn.Module, batch_size: int, size: tuple[int, int] = (16, 16), text: int = 77
) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        size: Height and width of the latents.
        text: Text tokens.
    """
    return {
        "sample": torch.randn(batch_size, 4, *size),
        "timestep": torch.randint(0, 1000, (batch_size,)),
        "encoder_hidden_states": torch.randn(batch_size, text, 12),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(batch_size, 8),
            "time_ids": torch.tensor([[16.0, 16, 0, 0, 16, 16]] * batch_size),
        },
    }
