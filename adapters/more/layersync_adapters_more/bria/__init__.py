"""LayerSync adapter for Bria 3.2.

A ControlNet's residuals are added after a block, so the block's output is what it was before them.
"""

from __future__ import annotations

from layersync_core import BlockStack, BlockStackAdapter

adapter = BlockStackAdapter(
    family="bria",
    model_classes="BriaTransformer2DModel",
    derived_block="BriaTransformerBlock",
    # (text, image) in both
    stacks=[BlockStack("transformer_blocks", element=1), BlockStack("single_transformer_blocks", element=1)],
    embedder="x_embedder",
    width="inner_dim",
)
