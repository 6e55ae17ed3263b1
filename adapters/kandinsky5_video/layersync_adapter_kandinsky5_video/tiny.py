"""A Kandinsky 5 of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Kandinsky5Transformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "BTHWC"
timestep = "timestep"
channels = 4  # of 9; the conditioning latents and their mask follow


def tiny_model() -> nn.Module:
    """Return a Kandinsky 5 of 4 visual and 1 text blocks for latents of 4 channels.

    Freshly built modulations are zero, which makes every block the identity; here they are random.
    """
    model: nn.Module = Kandinsky5Transformer3DModel(
        in_visual_dim=channels,
        out_visual_dim=channels,
        in_text_dim=12,
        in_text_dim2=8,
        time_dim=16,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=4,
        axes_dims=(4, 4, 4),
        visual_cond=True,
    )
    for name, parameter in model.named_parameters():
        if "modulation" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def example_inputs(model: nn.Module, batch_size: int, text: int = 5, rows: int = 4, columns: int = 6) -> dict[str, Any]:
    """Return random arguments of the model's forward: 3 latent frames.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        text: Text tokens.
        rows: Rows of the latents.
        columns: Columns of the latents.
    """
    sizes = (3, rows // 2, columns // 2)
    return {
        # The noisy latents, the conditioning ones and their mask.
        "hidden_states": torch.randn(batch_size, 3, rows, columns, 2 * channels + 1),
        "encoder_hidden_states": torch.randn(batch_size, text, 12),
        "timestep": torch.rand(batch_size) * 1000,
        "pooled_projections": torch.randn(batch_size, 8),
        "visual_rope_pos": [torch.arange(size) for size in sizes],
        "text_rope_pos": torch.arange(text),
    }
