"""LayerSync adapter for MyTransformer.

Every layersync command reads this module, so it imports neither torch nor the model's code.
"""

from __future__ import annotations

from layersync_core import BlockStack, BlockStackAdapter, latent_grid

adapter = BlockStackAdapter(
    family="tutorial",
    model_classes="MyTransformer",
    stacks=BlockStack("blocks", joined="last"),
    embedder="patchify",
    grid=latent_grid("latents", lambda model: (1, model.patch_size, model.patch_size)),
)
