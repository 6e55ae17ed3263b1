"""Classes of diffusers, as if no adapter knew them: tiny models, inputs, and where their sources have the tokens."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from layersync_core.capture.graph import tensors_in
from layersync_core.testing import scatter_weights, seed_everything

Read = Callable[[Any], Tensor]
BATCH, TEXT = 2, 5


def prediction(output: Any) -> Tensor:
    """Return the first tensor of what a model returned."""
    return tensors_in(output)[0]


@dataclass(frozen=True)
class Unknown:
    """One class.

    Attributes:
        kind: Its name in diffusers.
        arguments: Of a tiny model.
        inputs: Return arguments of its forward.
        student: Path of a block, and how its image, video or audio tokens are read from what it returns.
        teacher: The same of a deeper one.
        blocks: How many it has.
        trained: Returns what a training compares with its target, of what the forward returned.
    """

    kind: str
    arguments: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]
    student: tuple[str, Read]
    teacher: tuple[str, Read]
    blocks: int
    trained: Read = prediction

    def build(self) -> nn.Module:
        seed_everything()
        model: nn.Module = getattr(diffusers, self.kind)(**self.arguments)
        scatter_weights(model)
        return model


def first(output: Any) -> Tensor:
    return output[0]


def second(output: Any) -> Tensor:
    return output[1]


def alone(output: Tensor) -> Tensor:
    return output


def _text(width: int) -> Tensor:
    return torch.randn(BATCH, TEXT, width)


def _video(*sizes: int) -> dict[str, Any]:
    return {"hidden_states": torch.randn(BATCH, *sizes), "timestep": torch.tensor([10, 600])}


def _crops() -> dict[str, Any]:
    size = torch.tensor([[32, 32]] * BATCH)
    return {"original_size": size, "target_size": size, "crop_coords": size * 0}


def _mochi() -> dict[str, Any]:
    return _video(4, 3, 8, 8) | {
        "encoder_hidden_states": _text(8),
        "encoder_attention_mask": torch.ones(BATCH, TEXT, dtype=torch.bool),
    }


def _allegro() -> dict[str, Any]:
    attention = {"attention_mask": torch.ones(BATCH, 2, 8, 8), "encoder_attention_mask": torch.ones(BATCH, TEXT)}
    place = torch.arange(2 * 4 * 4)
    positions = [axis[None] for axis in (place // 16, place % 16 // 4, place % 4)]
    rotations = [(torch.ones(32, 8), torch.zeros(32, 8)) for _ in range(3)]
    return (
        _video(4, 2, 8, 8) | attention | {"encoder_hidden_states": _text(8), "image_rotary_emb": (rotations, positions)}
    )


def _hunyuan() -> dict[str, Any]:
    return _video(4, 4, 4) | {
        "timestep": torch.rand(BATCH) * 1000,
        "encoder_hidden_states": _text(8),
        "encoder_attention_mask": torch.ones(BATCH, TEXT, dtype=torch.long),
    }


def _krea() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(BATCH, 16, 4),
        "encoder_hidden_states": torch.randn(BATCH, TEXT, 2, 8),
        "timestep": torch.rand(BATCH),
        "position_ids": torch.zeros(TEXT + 16, 3),
    }


def _ids(columns: int = 3) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(BATCH, 16, 4),
        "encoder_hidden_states": _text(8),
        "timestep": torch.rand(BATCH),
        "img_ids": torch.zeros(16, columns),
        "txt_ids": torch.zeros(TEXT, columns),
    }


def _sequence_first(output: Tensor) -> Tensor:
    return output.transpose(0, 1)[:, :16]


def _last(output: Tensor) -> Tensor:
    return output[:, TEXT:]


HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
UNKNOWN = [
    Unknown(
        "MochiTransformer3DModel",
        {
            **HEADS,
            "num_layers": 4,
            "pooled_projection_dim": 8,
            "in_channels": 4,
            "text_embed_dim": 8,
            "time_embed_dim": 4,
        },
        _mochi,
        ("transformer_blocks.1", first),
        ("transformer_blocks.3", first),
        4,
    ),
    Unknown(
        "CogVideoXTransformer3DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 4,
            "text_embed_dim": 8,
            "num_layers": 4,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 9,
            "max_text_seq_length": TEXT,
        },
        lambda: _video(3, 4, 8, 8) | {"encoder_hidden_states": _text(8)},
        ("transformer_blocks.1", first),
        ("transformer_blocks.3", first),
        4,
    ),
    Unknown(
        "CogView4Transformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
            "condition_dim": 4,
        },
        lambda: _video(4, 8, 8) | {"encoder_hidden_states": _text(8)} | _crops(),
        ("transformer_blocks.0", first),
        ("transformer_blocks.2", first),
        4,
    ),
    Unknown(
        "CogView3PlusTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
            "condition_dim": 2,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        lambda: _video(4, 8, 8) | {"encoder_hidden_states": _text(8)} | _crops(),
        ("transformer_blocks.1", first),
        ("transformer_blocks.2", first),
        4,
    ),
    Unknown(
        "AllegroTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 24,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 4,
            "cross_attention_dim": 48,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 2,
            "caption_channels": 8,
        },
        _allegro,
        ("transformer_blocks.1", alone),
        ("transformer_blocks.3", alone),
        4,
    ),
    Unknown(
        "HunyuanImageTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 1,
            "text_embed_dim": 8,
            "rope_axes_dim": (4, 4),
        },
        _hunyuan,
        ("transformer_blocks.1", first),
        ("single_transformer_blocks.1", first),
        4,
    ),
    Unknown(
        "Krea2Transformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "num_layers": 4,
            "num_key_value_heads": 1,
            "intermediate_size": 16,
            "timestep_embed_dim": 8,
            "text_hidden_dim": 8,
            "num_text_layers": 2,
            "text_num_attention_heads": 1,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": 8,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
        },
        _krea,
        ("transformer_blocks.1", _last),
        ("transformer_blocks.3", _last),
        4,
    ),
    Unknown(
        "PRXTransformer2DModel",
        {"in_channels": 4, "context_in_dim": 8, "hidden_size": 16, "num_heads": 2, "depth": 4, "axes_dim": [4, 4]},
        lambda: _video(4, 8, 8) | {"timestep": torch.rand(BATCH), "encoder_hidden_states": _text(8)},
        ("blocks.1", alone),
        ("blocks.3", alone),
        4,
    ),
    Unknown(
        "OvisImageTransformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "joint_attention_dim": 8,
            "axes_dims_rope": (4, 2, 2),
        },
        _ids,
        ("transformer_blocks.0", second),
        ("single_transformer_blocks.1", second),
        4,
    ),
    Unknown(
        "SkyReelsV2Transformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 8,
            "freq_dim": 16,
            "ffn_dim": 16,
            "num_layers": 4,
        },
        lambda: _video(4, 3, 8, 8) | {"encoder_hidden_states": _text(8)},
        ("blocks.1", alone),
        ("blocks.3", alone),
        4,
    ),
    Unknown(
        "ErnieImageTransformer2DModel",
        {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_layers": 4,
            "ffn_hidden_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "text_in_dim": 8,
            "rope_axes_dim": (4, 2, 2),
        },
        lambda: (
            _video(4, 4, 4)
            | {"timestep": torch.rand(BATCH), "text_bth": _text(8), "text_lens": torch.tensor([TEXT] * BATCH)}
        ),
        ("layers.1", _sequence_first),
        ("layers.3", _sequence_first),
        4,
    ),
    Unknown(
        "Flux3Transformer2DModel",
        {
            **HEADS,
            "in_channels": 4,
            "cond_in_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "joint_attention_dim": 8,
            "timestep_channels": 8,
            "axes_dims_rope": (2, 2, 2, 2),
        },
        lambda: _ids(4),
        ("mode_blocks.image.1", alone),
        ("single_transformer_blocks.1", second),
        4,
    ),
]
