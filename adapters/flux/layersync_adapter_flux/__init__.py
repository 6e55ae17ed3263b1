"""LayerSync adapter for Flux and Flux Kontext.

A ControlNet's residuals are added after a block, so the block's output is what it was before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout, joined_text

if TYPE_CHECKING:
    from torch import Tensor


def _generated(call: ForwardCall) -> Tensor | None:
    """Return (S,) bool: Kontext's reference tokens follow the generated ones and carry a 1 in the first position id."""
    ids = call.arguments["img_ids"]
    if ids is None:
        return None
    ids = ids[0] if ids.ndim == 3 else ids  # a batch axis is the older form
    return ids[:, 0] == 0  # type: ignore[no-any-return]


def _generated_by_rotation(call: ForwardCall) -> Tensor | None:
    """Return (S,) bool from the rotations of text and image: the angle is 0 where the first position id is 0."""
    return call.block["image_rotary_emb"][0, 0, -call.tokens :, 0, 0, 0] == 1  # type: ignore[no-any-return]


def _generated_by_angles(call: ForwardCall) -> Tensor | None:
    """Return (S,) bool from the cosines and sines of text and image: the sine is 0 where the first position id is 0."""
    _, sines = call.block["image_rotary_emb"]
    return sines[-call.tokens :, 0] == 0  # type: ignore[no-any-return]


def _original(model: Any) -> Sequence[BlockStack]:
    # The Chroma of sd-scripts derives from its Flux, but joins [image, text] and has no pooled text embedding.
    if not hasattr(model, "vector_in"):
        return ()
    return (BlockStack("double_blocks", element=0), BlockStack("single_blocks", joined="last"))


adapter = BlockStackAdapter(
    family="flux",
    model_classes="FluxTransformer2DModel",
    derived_block="FluxTransformerBlock",
    stacks=[
        BlockStack("transformer_blocks", element=1),
        # (text, image), and in older diffusers one tensor [text, image].
        BlockStack("single_transformer_blocks", element=1, joined="last"),
    ],
    embedder="x_embedder",
    width="inner_dim",
    joined_tokens=joined_text("encoder_hidden_states", "transformer_blocks"),
    target=_generated,
    block_target=_generated_by_angles,  # diffusion-pipe calls the blocks itself
    forks=[
        # the original repository, sd-scripts, musubi-tuner
        ModelLayout(
            model_classes="Flux",
            derived_block="DoubleStreamBlock",
            stacks=_original,
            embedder="img_in",
            width="hidden_size",
            joined_tokens=joined_text("txt", "double_blocks"),
            target=_generated,
        ),
        ModelLayout(  # DiffSynth-Studio, which calls the blocks itself
            model_classes="FluxDiT",
            derived_block="FluxJointTransformerBlock",
            # (image, text); ([text, image], text)
            stacks=[BlockStack("blocks", element=0), BlockStack("single_blocks", element=0, joined="last", whole=True)],
            embedder="x_embedder",
            width="x_embedder.out_features",
            block_target=_generated_by_rotation,
        ),
    ],
)
