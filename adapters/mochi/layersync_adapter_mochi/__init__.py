"""LayerSync adapter for Mochi."""

from __future__ import annotations

from math import prod

from layersync_core import BlockStack, BlockStackAdapter, ModelLayout, latent_grid

_grid = latent_grid("hidden_states", lambda model: (1, *2 * (model.config.patch_size,)))

adapter = BlockStackAdapter(
    family="mochi",
    model_classes="MochiTransformer3DModel",
    derived_block="MochiTransformerBlock",
    stacks=BlockStack("transformer_blocks", element=0),  # (video, text)
    width="patch_embed.proj.out_channels",
    image_tokens=lambda call: prod(_grid(call)),  # the embedder treats frames as samples
    grid=_grid,
    video=True,
    forks=[
        ModelLayout(  # the original repository
            model_classes="AsymmDiTJoint",
            derived_block="AsymmetricJointBlock",
            stacks=BlockStack("blocks", element=0),
            embedder="x_embedder",
            width="hidden_size_x",
            grid=latent_grid("x", lambda model: (1, *2 * (model.patch_size,))),
            video=True,
        ),
    ],
)
