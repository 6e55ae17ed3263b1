"""LayerSync adapter for Kandinsky 6.

The video's tokens are aligned, not the sound's. A reference frame follows the generated ones; its tokens have another
type.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall

if TYPE_CHECKING:
    from torch import Tensor


def _grid(call: ForwardCall) -> tuple[int, int, int]:
    sizes, patch = call.arguments["hidden_states"].shape[1:4], call.model.patch_size  # (B, T, H, W, C)
    return tuple(size // step for size, step in zip(sizes, patch, strict=True))


def _generated(call: ForwardCall) -> Tensor | None:
    """Return (B, S) bool from the frames' types."""
    types = call.arguments["visual_token_type_ids"]
    return None if types is None else (types == 0).repeat_interleave(prod(_grid(call)[1:]), dim=1)


adapter = BlockStackAdapter(
    family="kandinsky6",
    model_classes="Kandinsky6Transformer3DModel",
    derived_block="Kandinsky6FusedTransformerDecoderBlock",
    stacks=[BlockStack("visual_transformer_blocks", element=0)],  # (video, sound)
    width="config.model_dim",
    image_tokens=lambda call: prod(_grid(call)),
    target=_generated,
    grid=_grid,
    video=True,
)
