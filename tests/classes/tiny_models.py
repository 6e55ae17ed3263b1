"""Tiny models of classes that no adapter names, and where their sources have the tokens; a row goes with an adapter."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.discovery.classes import BATCH, TEXT, Read, Unknown, alone, first

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
FOUR = {"in_channels": 4, "out_channels": 4, "num_layers": 4}


def _noise(*sizes: int) -> Tensor:
    return torch.randn(BATCH, *sizes)


def _call(*sizes: int, **more: Any) -> dict[str, Any]:
    """Return latents of these sizes, a timestep, a caption of 8 channels, and further given arguments."""
    usual = {"hidden_states": _noise(*sizes), "timestep": torch.rand(BATCH), "encoder_hidden_states": _noise(TEXT, 8)}
    return {**usual, **more}


def _steps(*sizes: int) -> Tensor:
    return torch.randint(0, 1000, (BATCH, *sizes))


def _ones(*sizes: int) -> Tensor:
    return torch.ones(BATCH, *sizes)


def _behind(start: int) -> Read:
    return lambda output: output[:, start:]


def _wan_animate_2() -> dict[str, Any]:
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    cache = WanAnimate2KVCache(4)  # as the pass over the references leaves it
    for layer in cache.layer_caches:
        layer.store(_noise(12, 2, 16), _noise(12, 2, 16))
    latents = {name: [torch.randn(4, 3, 4, 4) for _ in range(BATCH)] for name in ("hidden_states", "condition_latents")}
    grid = torch.tensor([[3, 2, 2]] * BATCH)
    return latents | {
        "timestep": torch.rand(BATCH), "encoder_hidden_states": [torch.randn(TEXT, 8) for _ in range(BATCH)],
        "kv_cache": cache, "kv_cache_mode": "cached", "seq_len": 12, "reference_grid_sizes": grid, "origin_len": 9,
        "origin_area": [32, 32],
    }  # fmt: skip


def _proteina() -> dict[str, Any]:
    real, none = _ones(12).bool(), torch.zeros(BATCH, 12, dtype=torch.bool)
    return {
        "bb_ca": _noise(12, 3), "local_latents": _noise(12, 4), "bb_ca_time": torch.rand(BATCH),
        "local_latents_time": torch.rand(BATCH), "padding_mask": real,
        "conditioning": {"is_in_context_conditioning": none, "supports_local_latent": real},
    }  # fmt: skip


def _cosmos3() -> dict[str, Any]:
    text, vision = torch.arange(TEXT), torch.arange(TEXT, 21)
    return {
        "input_ids": text, "text_indexes": text, "und_len": TEXT, "position_ids": torch.zeros(3, 21, dtype=torch.long),
        "sequence_length": 21, "vision_tokens": [torch.randn(1, 4, 1, 8, 8)], "vision_token_shapes": [(1, 4, 4)],
        "vision_sequence_indexes": vision, "vision_mse_loss_indexes": vision,
        "vision_timesteps": torch.full((16,), 300.0), "vision_noisy_frame_indexes": [torch.tensor([0])],
    }  # fmt: skip


def _pair(path: str, read: Read, student: int = 1, teacher: int = 3) -> tuple[tuple[str, Read], tuple[str, Read]]:
    return (f"{path}.{student}", read), (f"{path}.{teacher}", read)


def _tiny(
    kind: str, arguments: dict[str, Any], inputs: Callable[[], dict[str, Any]], pair: Any, **more: Any
) -> Unknown:
    return Unknown(kind, arguments, inputs, *pair, **{"blocks": 4, **more})


# fmt: off
TINY = [
    _tiny(
        "AnyFlowFARTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 16, **FOUR, "text_dim": 8, "freq_dim": 8, "ffn_dim": 16,
         "chunk_partition": (1, 2)},
        lambda: _call(3, 4, 8, 8, timestep=torch.rand(BATCH, 3), r_timestep=torch.rand(BATCH, 3),
                      chunk_partition=[1, 2]),
        _pair("blocks", alone),
    ),
    _tiny(
        "Cosmos3OmniTransformer",
        {"head_dim": 8, "hidden_size": 16, "intermediate_size": 16, "latent_channel": 4, "num_attention_heads": 2,
         "num_hidden_layers": 4, "num_key_value_heads": 1, "patch_latent_dim": 16, "vocab_size": 16,
         "rope_axes_dim": (2, 1, 1)},
        _cosmos3,
        _pair("layers", lambda output: output[1][None]),
    ),
    _tiny(
        "HeliosTransformer3DModel",
        {"num_attention_heads": 2, "attention_head_dim": 16, **FOUR, "text_dim": 8, "freq_dim": 8, "ffn_dim": 16,
         "rope_dim": (4, 4, 8)},
        lambda: _call(4, 3, 8, 8, timestep=_steps()),
        _pair("blocks", alone),
    ),
    _tiny(
        "Kandinsky6SRTransformer3DModel",
        {"in_visual_dim": 4, "out_visual_dim": 4, "time_dim": 8, "model_dim": 32, "ff_dim": 16,
         "num_visual_blocks": 4, "axes_dims": (8, 4, 4)},
        lambda: {"hidden_states": _noise(1, 8, 8, 9), "timestep": torch.rand(BATCH)},
        _pair("visual_transformer_blocks", alone),
    ),
    _tiny(
        "LongCatAudioDiTTransformer",
        {"dit_dim": 16, "dit_depth": 4, "dit_heads": 2, "dit_text_dim": 8, "latent_dim": 4},
        lambda: _call(16, 4, encoder_attention_mask=_ones(TEXT).bool()),
        _pair("blocks", alone),
    ),
    _tiny(
        "PriorTransformer",
        {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 4, "embedding_dim": 8,
         "num_embeddings": TEXT, "additional_embeddings": 4},
        lambda: _call(8, timestep=_steps(), proj_embedding=_noise(8)),
        _pair("transformer_blocks", _behind(-1)),
    ),
    _tiny(
        "RFD4ProteinaTransformer",
        {"nlayers": 4, "token_dim": 16, "nheads": 2, "dim_cond": 8, "pair_repr_dim": 8, "latent_dim": 4,
         "token_type_emb_dim": 4, "cath_emb_dim": 4, "t_emb_dim": 8, "seq_sep_dim": 8, "tri_mult_c": 8,
         "feats_seq": ("xt_bb_ca", "xt_local_latents"), "feats_pair_repr": ("xt_bb_ca_pair_dists",),
         "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"), "feats_pair_cond": ("time_emb_bb_ca",)},
        _proteina,
        _pair("transformer_layers", alone),
    ),
    _tiny(
        "SanaWMTransformer3DModel",
        {"in_channels": 4, "num_layers": 4, "hidden_size": 16, "num_attention_heads": 2, "linear_head_dim": 8,
         "caption_channels": 8, "chunk_plucker_channels": 4, "chunk_plucker_post_attn_blocks": 4, "image_size": 64},
        lambda: _call(4, 3, 4, 4, timestep=_steps(1, 3), encoder_hidden_states=_noise(1, TEXT, 8),
                      encoder_attention_mask=_ones(TEXT)),
        _pair("blocks", alone),
    ),
    _tiny(
        "SanaWMLTX2RefinerTransformer3DModel",
        {**HEADS, **FOUR, "cross_attention_dim": 16, "caption_channels": 8, "audio_in_channels": 4,
         "audio_out_channels": 4, "audio_num_attention_heads": 2, "audio_attention_head_dim": 4,
         "audio_cross_attention_dim": 8},
        lambda: _call(12, 4, timestep=_ones(12), video_rotary_emb=(torch.ones(1, 12, 16), torch.zeros(1, 12, 16))),
        _pair("transformer_blocks", alone),
    ),
    _tiny(
        "T5FilmDecoder",
        {"input_dims": 4, "targets_length": 16, "d_model": 16, "num_layers": 4, "num_heads": 2, "d_kv": 8, "d_ff": 16},
        lambda: {"encodings_and_masks": [(_noise(TEXT, 16), _ones(TEXT))], "decoder_input_tokens": _noise(16, 4),
                 "decoder_noise_time": torch.rand(BATCH)},
        _pair("decoders", first),
    ),
    _tiny(
        "WanAnimate2Transformer3DModel",
        {"text_len": TEXT, "in_dim": 8, "dim": 32, "ffn_dim": 16, "freq_dim": 8, "text_dim": 8, "out_dim": 4,
         "num_heads": 2, "num_layers": 4, "use_img_emb": False},
        _wan_animate_2,
        _pair("blocks", alone),
        trained=lambda output: torch.stack(output.sample),
    ),
]

ASKED = {
    "LatteTransformer3DModel": (
        _tiny(
            "LatteTransformer3DModel",
            {**HEADS, **FOUR, "cross_attention_dim": 16, "sample_size": 8, "patch_size": 2,
             "norm_type": "ada_norm_single", "caption_channels": 8, "video_length": 3},
            lambda: _call(4, 3, 8, 8, timestep=_steps()),
            _pair("transformer_blocks", alone),
        ),
        "spatial and temporal blocks run in turns, one folding frames into the batch and the other places, so that "
        "family auto asks of which list a pair is meant",
        "two lists of blocks run in turns, and measuring cannot tell which of them a pair may use: transformer_blocks "
        "or temporal_transformer_blocks",
    ),
}
# fmt: on
"""Classes that family auto refuses, with the reason and what it asks."""


def _lumina2() -> nn.Module:
    from diffusers import Lumina2Transformer2DModel

    return Lumina2Transformer2DModel(num_layers=2)


def _omnigen() -> nn.Module:
    from diffusers import OmniGenTransformer2DModel

    factors = {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48}
    return OmniGenTransformer2DModel(num_layers=2, rope_scaling=factors)


REFUSED: dict[str, Callable[[], nn.Module]] = {
    "Lumina2Transformer2DModel": _lumina2,
    "OmniGenTransformer2DModel": _omnigen,
}
"""Models of the classes that are refused by name; they need no weights."""
