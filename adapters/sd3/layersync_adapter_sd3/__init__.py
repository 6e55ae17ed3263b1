"""LayerSync adapter for Stable Diffusion 3 and 3.5.

A ControlNet's residuals are added after a block, so the block's output is what it was before them.
"""

from __future__ import annotations

from layersync_core import BlockStack, BlockStackAdapter, ModelLayout, latent_grid

adapter = BlockStackAdapter(
    family="sd3",
    model_classes="SD3Transformer2DModel",
    derived_block="JointTransformerBlock",
    stacks=[BlockStack("transformer_blocks", element=1)],  # (text, image); the last block's text is None
    embedder="pos_embed",
    width="inner_dim",
    grid=latent_grid("hidden_states", lambda model: (1, *2 * (model.config.patch_size,))),
    forks=[
        ModelLayout(  # sd-scripts, and the original repository's 3.5
            model_classes=("MMDiT", "MMDiTX"),
            derived_block=("MMDiTBlock", "JointBlock"),
            stacks=[BlockStack("joint_blocks", element=1)],
            embedder="x_embedder",
            width="x_embedder.proj.out_channels",
            grid=latent_grid("x", lambda model: (1, *2 * (model.patch_size,))),
        ),
    ],
)
