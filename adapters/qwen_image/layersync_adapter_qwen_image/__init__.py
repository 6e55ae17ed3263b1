"""LayerSync adapter for Qwen Image, Edit and Layered.

A ControlNet's residuals are added after a block, so the block's output is what it was before them.
"""

from __future__ import annotations

import cmath
from math import prod
from typing import TYPE_CHECKING, Any

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout

if TYPE_CHECKING:
    from torch import Tensor


def _images(call: ForwardCall) -> list[list[tuple[int, int, int]]]:
    """Return the (T, H, W) of each sample's images; a flat list is that of one image a sample."""
    shapes: Any = call.arguments["img_shapes"] or []
    return [list(sample) if isinstance(sample[0], (list, tuple)) else [sample] for sample in shapes]


def _generated(call: ForwardCall) -> Tensor | None:
    """Return (S,) or (B, S) bool: the first image is generated, references follow.

    The layered model generates every image but the last.
    """
    import torch

    counts = [sum(map(prod, images[:-1] if _layered(call) else images[:1])) for images in _images(call)]
    if all(count == call.tokens for count in counts):
        return None
    positions = torch.arange(call.tokens, device=call.arguments["hidden_states"].device)
    # Some trainers give the shapes of one sample for the whole batch.
    return positions < counts[0] if len(set(counts)) == 1 else torch.stack([positions < count for count in counts])


def _generated_by_rotation(call: ForwardCall) -> Tensor | None:
    """Return (S,) bool from the rotations of the image tokens, complex numbers (S, D): the first one's angle is the
    image's number, counted from 0, and -1 for the layered model's reference.
    """
    import torch

    turn_S = call.block["image_rotary_emb"][0][:, 0]
    return torch.view_as_real(turn_S * cmath.exp(1j))[:, 1].abs() > 1e-3 if _layered(call) else turn_S == 1


def _layered(call: ForwardCall) -> bool:
    return type(call.model.pos_embed).__name__ == "QwenEmbedLayer3DRope"


def _grid(call: ForwardCall) -> tuple[int, int, int] | None:
    images = _images(call)
    alone = images and all(sample == images[0] and len(sample) == 1 for sample in images)
    frames, rows, columns = images[0][0] if alone else (0, 0, 0)
    return (frames, rows, columns) if frames * rows * columns == call.tokens else None


adapter = BlockStackAdapter(
    family="qwen_image",
    model_classes="QwenImageTransformer2DModel",  # diffusers and musubi-tuner
    derived_block="QwenImageTransformerBlock",
    stacks=[BlockStack("transformer_blocks", element=1)],  # (text, image)
    embedder="img_in",
    width="inner_dim",
    target=_generated,
    grid=_grid,
    forks=[
        ModelLayout(  # DiffSynth-Studio, which calls the blocks itself
            model_classes="QwenImageDiT",
            stacks=[BlockStack("transformer_blocks", element=1)],
            embedder="img_in",
            width="img_in.out_features",
            block_target=_generated_by_rotation,
        ),
    ],
)
