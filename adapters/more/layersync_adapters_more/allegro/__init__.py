"""LayerSync adapter for Allegro."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from layersync_core import BlockStackAdapter, ForwardCall, latent_grid

if TYPE_CHECKING:
    from torch import Tensor

_grid = latent_grid(
    "hidden_states",
    lambda model: (model.config.patch_size_t, model.config.patch_size, model.config.patch_size),
)


def _real(call: ForwardCall) -> Tensor | None:
    """Return (B, S) bool: a video may be padded by frames, rows or columns, as its attention mask says by latent."""
    from torch.nn.functional import max_pool3d

    mask, sizes = call.arguments.get("attention_mask"), call.model.config
    if mask is None or mask.ndim != 4:
        return None
    frames = call.arguments["hidden_states"].shape[2]
    patch = (sizes.patch_size_t, sizes.patch_size, sizes.patch_size)
    return max_pool3d(mask[:, None, :frames].float(), patch, patch).flatten(1).bool()


adapter = BlockStackAdapter(
    family="allegro",
    model_classes="AllegroTransformer3DModel",
    derived_block="AllegroTransformerBlock",
    stacks="transformer_blocks",
    width="inner_dim",
    image_tokens=lambda call: prod(_grid(call)),
    real=_real,
    grid=_grid,
    video=True,
)
