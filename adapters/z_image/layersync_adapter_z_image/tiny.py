"""A Z-Image of some ten thousand weights, and inputs for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "image"
sample, axes = "x", "CTHW"
timestep = "t"


def tiny_model() -> nn.Module:
    """Return a Z-Image of 4 blocks, behind 1 + 1 refiners, for latents of 4 channels."""
    model: nn.Module = ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=4,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=10,
        axes_dims=[4, 4, 4],
        axes_lens=[128, 16, 16],
    )
    return model


def example_inputs(
    model: nn.Module, batch_size: int, sizes: Sequence[tuple[int, int]] = ((8, 8),), text: int = 5
) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        sizes: Height and width of each sample's latents; the last one is repeated.
        text: Text tokens.
    """
    sizes = [*sizes, *[sizes[-1]] * batch_size][:batch_size]
    return {
        "x": [torch.randn(4, 1, *size) for size in sizes],
        "t": torch.rand(batch_size),
        "cap_feats": [torch.randn(text, 10) for _ in sizes],
    }
