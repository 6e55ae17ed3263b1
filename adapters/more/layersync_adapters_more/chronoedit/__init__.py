"""LayerSync adapter for ChronoEdit.

The first frame, which is the image to edit, is in the video's own grid and counts like the others, and so do the frames
of its reasoning.
"""

from __future__ import annotations

from math import prod

from layersync_core import BlockStackAdapter, latent_grid

_grid = latent_grid("hidden_states", lambda model: model.config.patch_size)

adapter = BlockStackAdapter(
    family="chronoedit",
    model_classes="ChronoEditTransformer3DModel",
    derived_block="WanTransformerBlock",
    stacks="blocks",
    width="patch_embedding.out_channels",
    image_tokens=lambda call: prod(_grid(call)),
    grid=_grid,
    video=True,
)
