"""LayerSync adapter for GLM-Image."""

from __future__ import annotations

from layersync_core import BlockStack, BlockStackAdapter, latent_grid

adapter = BlockStackAdapter(
    family="glm_image",
    model_classes="GlmImageTransformer2DModel",
    derived_block="GlmImageTransformerBlock",
    stacks=[BlockStack("transformer_blocks", element=0)],  # (image, text)
    embedder="image_projector",
    width="image_projector.proj.out_features",
    grid=latent_grid("hidden_states", lambda model: (1, model.config.patch_size, model.config.patch_size)),
)
