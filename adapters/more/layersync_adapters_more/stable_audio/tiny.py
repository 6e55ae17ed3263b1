"""Stable Audio models of a few thousand weights, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableAudioDiTModel
from torch import nn

from layersync_core import Modality

modality: Modality = "audio"
sample, axes = "hidden_states", "BCL"
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a Stable Audio of 3 blocks for latents of 4 channels."""
    model: nn.Module = StableAudioDiTModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=16,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=12,
    )
    return model


def tiny_3() -> nn.Module:
    """Return a Stable Audio 3 of 3 blocks for latents of 4 channels, with 3 memory tokens."""
    from diffusers import StableAudio3DiTModel

    model: nn.Module = StableAudio3DiTModel(
        io_channels=4,
        embed_dim=16,
        depth=3,
        num_heads=2,
        cond_token_dim=12,
        global_cond_dim=8,
        local_add_cond_dim=5,
        timestep_features_dim=8,
        ff_mult=2,
        num_memory_tokens=3,
    )
    return model


variants = {"Stable Audio": tiny_model, "Stable Audio 3": tiny_3}


def example_inputs(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of the model's forward: 8 positions, 5 text tokens, one of global conditions."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    return {
        "hidden_states": torch.randn(batch_size, 4, 8),
        "timestep": torch.rand(batch_size),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "global_hidden_states": torch.randn(batch_size, 1, 8),
        "rotary_embedding": get_1d_rotary_pos_embed(4, 9, use_real=True, repeat_interleave_real=False),
    }


def inputs_3(model: nn.Module, batch_size: int) -> dict[str, Any]:
    """Return random arguments of a Stable Audio 3's forward: 8 positions, 5 text tokens, what is to be kept."""
    return {
        "hidden_states": torch.randn(batch_size, 4, 8),
        "timestep": torch.rand(batch_size),
        "encoder_hidden_states": torch.randn(batch_size, 5, 12),
        "global_hidden_states": torch.randn(batch_size, 8),
        "local_add_cond": torch.randn(batch_size, 5, 8),
    }
