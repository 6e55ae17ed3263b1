"""LayerSync adapter for ConsisID.

The features of a face are added after a block, so the block's output is what it was before them. The frame of an image
is in the video's own channels and counts like the others.
"""

from __future__ import annotations

from math import prod

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall


def _grid(call: ForwardCall) -> tuple[int, int, int]:
    frames, _, rows, columns = call.arguments["hidden_states"].shape[1:]
    patch = call.model.config.patch_size
    return frames, rows // patch, columns // patch


adapter = BlockStackAdapter(
    family="consisid",
    model_classes="ConsisIDTransformer3DModel",
    derived_block="ConsisIDBlock",
    stacks=[BlockStack("transformer_blocks", element=0)],  # (video, text)
    width="patch_embed.embed_dim",
    image_tokens=lambda call: prod(_grid(call)),
    grid=_grid,
    video=True,
)
