"""LayerSync adapter for EasyAnimate 5.1.

Inpainting and control latents are extra channels on the video's own grid, whose tokens all count.
"""

from __future__ import annotations

from math import prod

from layersync_core import BlockStack, BlockStackAdapter, latent_grid

_grid = latent_grid("hidden_states", lambda model: (1, model.config.patch_size, model.config.patch_size))

adapter = BlockStackAdapter(
    family="easyanimate",
    model_classes="EasyAnimateTransformer3DModel",
    derived_block="EasyAnimateTransformerBlock",
    stacks=[BlockStack("transformer_blocks", element=0)],  # (video, text)
    width="proj.out_channels",
    image_tokens=lambda call: prod(_grid(call)),
    grid=_grid,
    video=True,
)
