"""LayerSync adapter for Photoroom's PRX."""

from __future__ import annotations

from layersync_core import BlockStackAdapter, latent_grid

adapter = BlockStackAdapter(
    family="prx",
    model_classes="PRXTransformer2DModel",
    derived_block="PRXBlock",
    stacks="blocks",
    embedder="img_in",
    width="hidden_size",
    grid=latent_grid("hidden_states", lambda model: (1, model.patch_size, model.patch_size)),
)
