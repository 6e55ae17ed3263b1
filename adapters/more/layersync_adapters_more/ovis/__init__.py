"""LayerSync adapter for Ovis-Image."""

from __future__ import annotations

from layersync_core import BlockStack, BlockStackAdapter

adapter = BlockStackAdapter(
    family="ovis",
    model_classes="OvisImageTransformer2DModel",
    derived_block="OvisImageTransformerBlock",
    # (text, image) in both
    stacks=[BlockStack("transformer_blocks", element=1), BlockStack("single_transformer_blocks", element=1)],
    embedder="x_embedder",
    width="inner_dim",
)
