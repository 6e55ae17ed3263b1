"""LayerSync adapter for CogView3-Plus."""

from __future__ import annotations

from math import prod

from layersync_core import BlockStack, BlockStackAdapter, latent_grid

_grid = latent_grid("hidden_states", lambda model: (1, model.config.patch_size, model.config.patch_size))

adapter = BlockStackAdapter(
    family="cogview3",
    model_classes="CogView3PlusTransformer2DModel",
    derived_block="CogView3PlusTransformerBlock",
    stacks=[BlockStack("transformer_blocks", element=0)],  # (image, text)
    width="inner_dim",
    image_tokens=lambda call: prod(_grid(call)),
    grid=_grid,
)
