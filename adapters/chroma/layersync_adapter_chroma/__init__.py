"""LayerSync adapter for Chroma.

A ControlNet's residuals are added after a block. Dual-stream blocks are captured without them; for single-stream blocks
diffusers adds them in place to the block's output, so the sum is captured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout, joined_text


def _text_last(model: Any) -> Sequence[BlockStack]:
    # The Chroma of sd-scripts derives from its Flux and, unlike all others, joins [image, text].
    if not any(base.__name__ == "Flux" for base in type(model).__mro__):
        return ()
    return (BlockStack("double_blocks", element=0), BlockStack("single_blocks", joined="first"))


def _radiance(model: Any) -> Sequence[BlockStack]:
    return _TEXT_FIRST if hasattr(model, "img_in_patch") else ()


def _pixel_patches(call: ForwardCall) -> int:
    """Return how many patches Radiance's convolution makes from its pixels."""
    rows, columns = call.arguments["img"].shape[-2:]
    size = call.model.params.patch_size
    return int((rows // size) * (columns // size))


_TEXT_FIRST = (BlockStack("double_blocks", element=0), BlockStack("single_blocks", joined="last"))

adapter = BlockStackAdapter(
    family="chroma",
    model_classes="ChromaTransformer2DModel",
    derived_block="ChromaTransformerBlock",
    stacks=[
        BlockStack("transformer_blocks", element=1),  # (text, image)
        BlockStack("single_transformer_blocks", joined="last"),  # [text, image]
    ],
    embedder="x_embedder",
    width="inner_dim",
    joined_tokens=joined_text("encoder_hidden_states", "transformer_blocks"),
    forks=[
        ModelLayout(
            model_classes="Chroma",
            derived_block="DoubleStreamBlock",
            stacks=_text_last,
            embedder="img_in",
            width="hidden_size",
        ),
        ModelLayout(
            model_classes="Chroma",
            derived_block="DoubleStreamBlock",
            stacks=_radiance,
            image_tokens=_pixel_patches,
            width="hidden_size",
        ),
        # the original repository, ai-toolkit
        ModelLayout(
            model_classes="Chroma",
            derived_block="DoubleStreamBlock",
            stacks=_TEXT_FIRST,
            embedder="img_in",
            width="hidden_size",
        ),
    ],
)
