"""LayerSync adapter for CogVideoX 1.0 and 1.5, and their image-to-video models.

An image is concatenated by channel, so every token is one of the generated video.
"""

from __future__ import annotations

from math import prod
from typing import Any

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall


def _grid(call: ForwardCall) -> Any:
    """Return (T, H, W) of the tokens; the latents are (B, T, C, H, W), and 1.5 has patches of several frames."""
    latents, config = call.arguments.get("hidden_states"), call.model.config
    if latents is None:
        return None
    frames, _, rows, columns = latents.shape[1:]
    return frames // (config.patch_size_t or 1), rows // config.patch_size, columns // config.patch_size


adapter = BlockStackAdapter(
    family="cogvideox",
    model_classes="CogVideoXTransformer3DModel",
    derived_block="CogVideoXBlock",
    stacks=BlockStack("transformer_blocks", element=0),  # (video, text)
    width="proj_out.in_features",
    image_tokens=lambda call: prod(_grid(call)),  # the embedder returns text and video joined
    grid=_grid,
    video=True,
)
