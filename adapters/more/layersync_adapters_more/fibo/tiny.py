"""A FIBO and a FIBO 2 of a few thousand weights, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import BriaFiboTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "hidden_states", "B(HW)(C22)"
grid = 4, 4
timestep = "timestep"


def tiny_model() -> nn.Module:
    """Return a FIBO of 1 dual-stream and 2 single-stream blocks for packed latents of 4 channels."""
    model: nn.Module = BriaFiboTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=8,
    )
    return model


def tiny_2() -> nn.Module:
    """Return a FIBO 2 of 3 blocks, with 2 gist tokens for 5 text tokens and 4 for 9."""
    from diffusers import BriaFibo2Transformer2DModel

    model: nn.Module = BriaFibo2Transformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=12,
        injection_layer_ids=(0, 2),
        perceiver_num_layers=1,
        min_num_gist_tokens=2,
        max_num_gist_tokens=4,
        gist_step=2,
        gist_min_text_len=5,
        gist_max_text_len=9,
        axes_dims=(4, 6, 6),
        axes_lens=(32, 16, 16),
    )
    return model


variants = {"FIBO": tiny_model, "FIBO 2": tiny_2}


def example_inputs(model: nn.Module, batch_size: int, references: int = 0, text: int = 5) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: A FIBO.
        batch_size: Samples.
        references: Reference images; their tokens follow the generated ones.
        text: Text tokens.
    """
    rows = torch.arange(4)
    ids = [torch.cartesian_prod(torch.tensor([image]), rows, rows).float() for image in range(1 + references)]
    return {
        "hidden_states": torch.randn(batch_size, 16 * len(ids), 16),
        "encoder_hidden_states": torch.randn(batch_size, text, 12),
        "text_encoder_layers": [torch.randn(batch_size, text, 8) for _ in range(3)],
        "timestep": torch.rand(batch_size) * 1000,
        "img_ids": torch.cat(ids),
        "txt_ids": torch.zeros(text, 3),
    }


def inputs_2(
    model: nn.Module, batch_size: int, references: int = 0, text: int = 5, lengths: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: A FIBO 2.
        batch_size: Samples.
        references: Reference images, whose latents are 4x8.
        text: Text tokens.
        lengths: How many of these are not padding, for each sample; empty: all.
    """
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(batch_size, 4, 8, 8),
        "timestep": torch.rand(batch_size),
        "encoder_hidden_states": torch.randn(batch_size, 3, text, 12),
    }
    if references:
        inputs["context_latents"] = [torch.randn(batch_size, 4, 4, 8) for _ in range(references)]
    if lengths:
        inputs["encoder_attention_mask"] = torch.arange(text) < torch.tensor(lengths)[:, None]
    return inputs
