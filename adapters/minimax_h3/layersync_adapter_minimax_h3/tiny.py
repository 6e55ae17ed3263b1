"""A MiniMax H3 of a few thousand weights, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import MiniMaxH3Transformer3DModel
from torch import nn

from layersync_core import Modality

modality: Modality = "video"
sample, axes = "hidden_states", "B(THW)C"
grid = (2, 3, 2)
timestep = "timestep"  # one for the whole batch: the class has one packed layout for all samples
_CHANNELS, _AUDIO, _TEXT, _ROWS = 4, 4, 8, 12


def tiny_model() -> nn.Module:
    """Return a MiniMax H3 of 4 blocks for rows of 4 channels of 1x2x2 patches."""
    model: nn.Module = MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        hidden_size=16,
        num_layers=4,
        num_refiner_layers=1,
        ffn_dim=16,
        in_channels=_CHANNELS,
        audio_in_channels=_AUDIO,
        text_dim=_TEXT,
        freq_dim=8,
        time_embed_hidden_dim=8,
        time_embed_dim=8,
        rope_freq_dim=2,
    )
    return model


def packed(text: int, conditions: int, audio: int = 3) -> dict[str, Any]:
    """Return the layout of a packed sequence: text, conditioning rows, audio, generated rows.

    Args:
        text: Rows of text; with conditioning rows, the second shows their image, and has the tag of video.
        conditions: Conditioning rows.
        audio: Rows of audio.
    """
    kinds = torch.cat([torch.full((count,), kind) for kind, count in enumerate((text, conditions, audio, _ROWS))])
    video = (kinds == 1) | (kinds == 3)
    tags = torch.where(video, 0, torch.where(kinds == 2, 2, 1))
    if conditions:
        tags[1] = 0
    place = torch.arange(len(kinds))
    return {
        # The text has the time of the generated rows; without conditions there is only one time.
        "timestep": torch.tensor([0.3, 0.4, 0.999] if conditions else [0.3]),
        "timestep_indices": torch.tensor([0, 2, 1, 0] if conditions else [0, 0, 0, 0])[kinds],
        "token_tags": tags,
        "position_ids": torch.stack([place, place % 3, place % 2], dim=1).float(),
        "video_indices": video.nonzero().flatten(),
        "audio_indices": (kinds == 2).nonzero().flatten(),
        "text_indices": (kinds == 0).nonzero().flatten(),
    }


def example_inputs(model: nn.Module, batch_size: int, text: int = 5, conditions: int = 0) -> dict[str, Any]:
    """Return random arguments of the model's forward: 2 latent frames of 3x2 patches.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        text: Text tokens.
        conditions: Rows of conditioning frames.
    """
    layout = packed(text, conditions)
    return {
        "hidden_states": torch.randn(batch_size, conditions + _ROWS, 4 * _CHANNELS),
        "audio_hidden_states": torch.randn(batch_size, len(layout["audio_indices"]), _AUDIO),
        "encoder_hidden_states": torch.randn(batch_size, text, _TEXT),
        **layout,
    }
