"""A tiny LTX-Video and LTX-2, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LTXVideoTransformer3DModel
from torch import Tensor, nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "B(THW)C"
grid = 3, 2, 4
timestep = "timestep"
_CHANNELS, _TEXT = 4, 12


def tiny_model() -> nn.Module:
    """Return an LTX-Video of 4 blocks for latents of 4 channels."""
    model: nn.Module = LTXVideoTransformer3DModel(
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=4,
        caption_channels=_TEXT,
    )
    return model


def tiny_2() -> nn.Module:
    """Return an LTX-2 of 4 blocks, whose audio stream is half as wide as the video's."""
    from diffusers import LTX2VideoTransformer3DModel

    model: nn.Module = LTX2VideoTransformer3DModel(
        in_channels=_CHANNELS,
        out_channels=_CHANNELS,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=_CHANNELS,
        audio_out_channels=_CHANNELS,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=4,
        caption_channels=_TEXT,
    )
    return model


variants = {"LTX-Video": tiny_model, "LTX-2": tiny_2}


def example_inputs(model: nn.Module, batch_size: int, text: int = 5, references: int = 0) -> dict[str, Any]:
    """Return random arguments of the model's forward: 3 latent frames of 2x4, for LTX-2 with audio of 6 tokens.

    Args:
        model: A model that this module made.
        batch_size: Samples.
        text: Text tokens.
        references: Reference videos of the same size; their tokens come first in LTX-Video, last in LTX-2.
    """
    frames, rows, columns = grid
    inputs: dict[str, Any] = {
        "hidden_states": torch.randn(batch_size, (1 + references) * frames * rows * columns, _CHANNELS),
        "encoder_hidden_states": torch.randn(batch_size, text, _TEXT),
        "timestep": torch.rand(batch_size) * 1000,
        "encoder_attention_mask": torch.ones(batch_size, text),
        "num_frames": frames,
        "height": rows,
        "width": columns,
    }
    if "LTX2" in type(model).__name__:
        inputs |= {
            "audio_hidden_states": torch.randn(batch_size, 6, _CHANNELS),
            "audio_encoder_hidden_states": torch.randn(batch_size, text, _TEXT),
            "audio_encoder_attention_mask": torch.ones(batch_size, text),
            "audio_num_frames": 6,
        }
    if references:
        inputs["video_coords"] = torch.cat([_coordinates(model, batch_size)] * (1 + references), dim=2)
    return inputs


def _coordinates(model: Any, batch_size: int) -> Tensor:
    frames, rows, columns = grid
    if "LTX2" in type(model).__name__:
        bounds: Tensor = model.rope.prepare_video_coords(batch_size, frames, rows, columns, torch.device("cpu"))
        return bounds
    positions = torch.meshgrid(*(torch.arange(float(size)) for size in grid), indexing="ij")
    return torch.stack(positions).flatten(1).expand(batch_size, -1, -1)
