"""LayerSync adapter for Krea 2.

Diffusers joins [text, image], and SimpleTuner puts a reference after the image. Other trainers pad the sequence to a
multiple of 256 tokens, musubi-tuner joins the image first, and ai-toolkit puts references after it: there masks say
which tokens are the image's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout

if TYPE_CHECKING:
    from torch import Tensor


def _generated(call: ForwardCall) -> Tensor:
    """Return (S,) bool: SimpleTuner's reference repeats the positions of the generated image."""
    return _until_it_repeats(call.arguments["position_ids"][-call.tokens :])


def _generated_by_rotation(call: ForwardCall) -> Tensor:
    """Return the same from the cosines of text and image, which differ where the positions differ."""
    return _until_it_repeats(call.block["image_rotary_emb"][0][-call.tokens :])


def _until_it_repeats(places_SX: Tensor) -> Tensor:
    begins_S = (places_SX == places_SX[0]).all(dim=-1)
    return (begins_S.cumsum(0) == 1) | begins_S.all()  # if all positions are the same, they say nothing


def _krea(model: Any) -> Sequence[BlockStack]:
    return (BlockStack("blocks"),) if hasattr(model, "txtfusion") else ()


def _filled_up(call: ForwardCall) -> int:
    """Return the number of tokens that run through the blocks."""
    tokens = int(call.arguments["img"].shape[1] + call.arguments["context"].shape[1])
    return tokens + -tokens % 256


def _span(call: ForwardCall, references: int) -> Tensor:
    """Return (S,) bool, True for the image's tokens except this many at the end."""
    import torch

    image, text = call.arguments["img"], call.arguments["context"]
    start = 0 if hasattr(call.model, "attn_mode") else text.shape[1]  # musubi-tuner puts the image first
    positions = torch.arange(call.tokens, device=image.device)
    return (positions >= start) & (positions < start + image.shape[1] - references)  # type: ignore[no-any-return]


def _real(call: ForwardCall) -> Tensor:
    """Return (B, S) bool: the image and its references, which are padded to the sample with the most."""
    from torch.nn import functional as F

    mask = call.arguments["mask"]
    return F.pad(mask.bool(), (0, call.tokens - mask.shape[1])) & _span(call, 0)


adapter = BlockStackAdapter(
    family="krea2",
    model_classes="Krea2Transformer2DModel",
    derived_block="Krea2TransformerBlock",
    stacks=BlockStack("transformer_blocks", joined="last"),
    embedder="img_in",
    width="hidden_size",
    joined_tokens=lambda call: (
        call.tokens + int(call.arguments["encoder_hidden_states"].shape[1]) if call.arguments else None
    ),
    target=_generated,
    block_target=_generated_by_rotation,
    forks=[
        ModelLayout(  # musubi-tuner, ai-toolkit, DiffSynth-Studio
            model_classes="SingleStreamDiT",
            derived_block="SingleStreamBlock",
            stacks=_krea,
            width="first.out_features",
            image_tokens=_filled_up,
            target=lambda call: _span(call, call.arguments.get("reflen", 0)),
            real=_real,
        ),
    ],
)
