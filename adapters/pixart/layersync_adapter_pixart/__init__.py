"""LayerSync adapter for PixArt Sigma and Alpha.

A ControlNet's residuals are added after a block, so the block's output is what it was before them.
"""

from __future__ import annotations

from layersync_core import BlockStackAdapter, latent_grid

adapter = BlockStackAdapter(
    family="pixart",
    model_classes=("PixArtTransformer2DModel", "Transformer2DModel"),  # the second is diffusers' earlier name
    derived_block="BasicTransformerBlock",
    stacks="transformer_blocks",
    embedder="pos_embed",
    width="inner_dim",
    grid=latent_grid("hidden_states", lambda model: (1, *2 * (model.config.patch_size,))),
)
