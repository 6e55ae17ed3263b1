"""LayerSync adapter for SkyReels V2: text-to-video, image-to-video and diffusion forcing.

An image is concatenated by channel. In diffusion forcing each frame has its own noise level; given frames are in the
video's own grid and count like the others.
"""

from __future__ import annotations

from math import prod

from layersync_core import BlockStackAdapter, latent_grid

_grid = latent_grid("hidden_states", lambda model: model.config.patch_size)

adapter = BlockStackAdapter(
    family="skyreels_v2",
    model_classes="SkyReelsV2Transformer3DModel",
    derived_block="SkyReelsV2TransformerBlock",
    stacks="blocks",
    width="patch_embedding.out_channels",
    image_tokens=lambda call: prod(_grid(call)),
    grid=_grid,
    video=True,
)
