"""LayerSync adapter for Nucleus-Image, a mixture of experts."""

from __future__ import annotations

from layersync_core import BlockStackAdapter

adapter = BlockStackAdapter(
    family="nucleus",
    model_classes="NucleusMoEImageTransformer2DModel",
    derived_block="NucleusMoEImageTransformerBlock",
    stacks="transformer_blocks",
    embedder="img_in",
    width="inner_dim",
)
