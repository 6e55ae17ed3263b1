"""LayerSync adapter for Cosmos Predict 1, 2 and 2.5.

A ControlNet's residual is added inside a block, so the block's output has it already. The tokens of conditioning frames
are in the video's own grid and count like the others.
"""

from __future__ import annotations

from math import prod

from layersync_core import BlockStackAdapter, latent_grid

_grid = latent_grid("hidden_states", lambda model: model.config.patch_size)

adapter = BlockStackAdapter(
    family="cosmos",
    model_classes="CosmosTransformer3DModel",
    derived_block="CosmosTransformerBlock",
    stacks="transformer_blocks",
    width="patch_embed.proj.out_features",
    image_tokens=lambda call: prod(_grid(call)),
    grid=_grid,
    video=True,
)
