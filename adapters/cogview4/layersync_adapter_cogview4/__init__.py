"""LayerSync adapter for CogView4.

Its attention for training pads images of different sizes in one batch and takes a mask of their tokens, which is read
here as well. A control image is concatenated by channel, so it has no tokens of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, latent_grid

if TYPE_CHECKING:
    from torch import Tensor

_grid = latent_grid("hidden_states", lambda model: (1, *2 * (model.config.patch_size,)))


def _real_of(arguments: Mapping[str, Any]) -> Tensor | None:
    """Return (B, S) bool, False for padding; the forward and the blocks get the same ``attention_kwargs``."""
    mask_BS = (arguments.get("attention_kwargs") or {}).get("latent_attn_mask")
    return None if mask_BS is None else mask_BS != 0


def _grid_of_whole_images(call: ForwardCall) -> tuple[int, int, int] | None:
    return None if _real_of(call.arguments) is not None else _grid(call)


adapter = BlockStackAdapter(
    family="cogview4",
    model_classes="CogView4Transformer2DModel",
    derived_block="CogView4TransformerBlock",
    stacks=BlockStack("transformer_blocks", element=0),  # (image, text)
    width="proj_out.in_features",
    image_tokens=lambda call: prod(_grid(call)),
    real=lambda call: _real_of(call.arguments),
    block_real=lambda call: _real_of(call.block),
    grid=_grid_of_whole_images,
)
