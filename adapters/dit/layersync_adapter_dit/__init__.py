"""LayerSync adapter for DiT and SiT, the paper's own models."""

from __future__ import annotations

from layersync_core import BlockStackAdapter, ModelLayout, latent_grid

adapter = BlockStackAdapter(
    family="dit",
    model_classes=("DiTTransformer2DModel", "Transformer2DModel"),  # the second is diffusers' earlier name
    derived_block="BasicTransformerBlock",
    stacks="transformer_blocks",
    embedder="pos_embed",
    width="pos_embed.proj.out_channels",
    grid=latent_grid("hidden_states", lambda model: (1, *2 * (model.config.patch_size,))),
    forks=[
        ModelLayout(  # the original repositories
            model_classes=("SiT", "DiT"),
            derived_block=("SiTBlock", "DiTBlock"),
            stacks="blocks",
            embedder="x_embedder",
            width="x_embedder.proj.out_channels",
            grid=latent_grid("x", lambda model: (1, *2 * (model.patch_size,))),
        ),
    ],
)
