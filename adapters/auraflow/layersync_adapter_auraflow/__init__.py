"""LayerSync adapter for AuraFlow."""

from __future__ import annotations

from layersync_core import BlockStack, BlockStackAdapter, latent_grid

adapter = BlockStackAdapter(
    family="auraflow",
    model_classes="AuraFlowTransformer2DModel",
    stacks=[
        BlockStack("joint_transformer_blocks", element=1),  # (registers and text, image)
        BlockStack("single_transformer_blocks", joined="last"),  # [registers, text, image]
    ],
    embedder="pos_embed",
    width="inner_dim",
    grid=latent_grid("hidden_states", lambda model: (1, *2 * (model.config.patch_size,))),
)
