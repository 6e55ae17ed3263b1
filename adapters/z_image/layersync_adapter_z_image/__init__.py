"""LayerSync adapter for Z-Image. In a block's output the image comes first, then the caption.

A sample's image is padded to a multiple of 32 tokens, and the batch to its longest sequence, so the tokens of images
of different sizes are found by a mask. A ControlNet's residuals are added after a block, so the block's output is
what it was before them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layersync_core import BlockStack, BlockStackAdapter, CaptureError, ForwardCall

if TYPE_CHECKING:
    from torch import Tensor


def _grids(call: ForwardCall) -> list[tuple[int, int, int]]:
    """Return (T, H, W) of every sample's tokens; the latents are a list of (C, T, H, W), or one tensor."""
    images, patch, frames = (call.arguments[name] for name in ("x", "patch_size", "f_patch_size"))
    if isinstance(images[0], list):
        raise CaptureError(
            "Z-Image's omni form joins several images with text between them, where LayerSync cannot identify the "
            "generated image's tokens; train it with one image per sample"
        )
    return [(image.shape[1] // frames, image.shape[2] // patch, image.shape[3] // patch) for image in images]


def _lengths(call: ForwardCall) -> list[int]:
    return [frames * rows * columns for frames, rows, columns in _grids(call)]


def _joined(call: ForwardCall) -> int | None:
    """Return the length of a batch's longest image plus caption, each of which diffusers pads to multiples of 32."""
    if call.block:
        return int(call.block["freqs_cis"].shape[1])
    captions = [len(caption) for caption in call.arguments["cap_feats"]]
    multiple = 1 if "cap_mask" in call.arguments else 32  # musubi-tuner doesn't pad
    return max(
        sum(-(-length // multiple) * multiple for length in pair) for pair in zip(_lengths(call), captions, strict=True)
    )


def _real(call: ForwardCall) -> Tensor | None:
    """Return (B, S) bool: a smaller image is followed by its padding and its caption."""
    import torch

    lengths = _lengths(call)
    if min(lengths) == call.tokens:
        return None
    positions = torch.arange(call.tokens, device=call.arguments["x"][0].device)
    return torch.stack([positions < length for length in lengths])


def _block_real(call: ForwardCall) -> Tensor:
    """Return (B, S) bool from the first block's rotary frequencies: padding is at position 0, images are not."""
    return (call.block["freqs_cis"][:, : call.tokens] != 1).any(dim=-1)  # type: ignore[no-any-return]


def _grid(call: ForwardCall) -> tuple[int, int, int] | None:
    grids = set(_grids(call))
    return grids.pop() if len(grids) == 1 else None


adapter = BlockStackAdapter(
    family="z_image",
    model_classes=("ZImageTransformer2DModel", "ZImageDiT"),  # the latter is DiffSynth-Studio's
    derived_block="ZImageTransformerBlock",
    stacks=[BlockStack("layers", joined="first")],
    embedder="noise_refiner.0",  # the image's tokens as a batch; the embedder itself returns them in one row
    width="dim",
    image_tokens=lambda call: max(_lengths(call)),
    joined_tokens=_joined,
    real=_real,
    block_real=_block_real,
    grid=_grid,
)
