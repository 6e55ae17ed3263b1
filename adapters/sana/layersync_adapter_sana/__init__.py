"""LayerSync adapter for Sana and Sana Video.

A ControlNet's residuals are added after a block, so the block's output is what it was before them.
"""

from __future__ import annotations

from layersync_core import BlockStackAdapter, ModelLayout, latent_grid

adapter = BlockStackAdapter(
    family="sana",
    model_classes="SanaTransformer2DModel",
    derived_block="SanaTransformerBlock",
    stacks="transformer_blocks",
    embedder="patch_embed",
    width="patch_embed.proj.out_channels",
    grid=latent_grid("hidden_states", lambda model: (1, *2 * (model.config.patch_size,))),
    forks=[
        ModelLayout(
            model_classes="SanaVideoTransformer3DModel",
            derived_block="SanaVideoTransformerBlock",
            stacks="transformer_blocks",
            width="patch_embedding.out_channels",
            grid=latent_grid("hidden_states", lambda model: model.config.patch_size),
            video=True,
        ),
    ],
)
