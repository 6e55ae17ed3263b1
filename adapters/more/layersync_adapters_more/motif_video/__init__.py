"""LayerSync adapter for Motif-Video.

The last ``num_decoder_layers`` single-stream blocks start again from the embedded video and attend to the output of the
others: they are a stage of their own. The frame of an image is in extra channels on the video's own grid, whose tokens
all count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layersync_core import BlockStack, BlockStackAdapter, latent_grid


def _stacks(model: Any) -> Sequence[BlockStack]:
    count = len(model.single_transformer_blocks)
    first = count - model.num_decoder_layers
    single = "single_transformer_blocks"
    # (video, text), and in the decoder (video, output of the other blocks)
    stacks = [BlockStack("transformer_blocks", element=0), BlockStack(single, element=0, only=range(first))]
    return [*stacks, BlockStack(single, element=0, only=range(first, count), stage="decoder")]


adapter = BlockStackAdapter(
    family="motif_video",
    model_classes="MotifVideoTransformer3DModel",
    derived_block="MotifVideoTransformerBlock",
    stacks=_stacks,
    embedder="x_embedder",
    width="x_embedder.proj.out_channels",
    grid=latent_grid(
        "hidden_states",
        lambda model: (model.config.patch_size_t, model.config.patch_size, model.config.patch_size),
    ),
    video=True,
)
