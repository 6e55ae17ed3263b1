"""LayerSync adapter for Wan 2.1 and 2.2, VACE and Animate.

VACE's hints and Animate's face features are added after a block, so the block's output is what it was before them.
The tokens of conditioning frames are in the video's own grid and count like the others.
"""

from __future__ import annotations

from layersync_core.adapter import BlockStackAdapter, latent_grid

adapter = BlockStackAdapter(
    family="wan",
    model_classes=("WanTransformer3DModel", "WanVACETransformer3DModel", "WanAnimateTransformer3DModel"),
    stacks="blocks",
    width="patch_embedding.out_channels",
    grid=latent_grid("hidden_states", lambda model: model.config.patch_size),
    video=True,
)
