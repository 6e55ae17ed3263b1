"""LayerSync adapter for Wan 2.1 and 2.2, VACE and Animate.

VACE's hints and Animate's face features are added after a block, so the block's output is what it was before them; in
the original repository VACE's are added inside. The tokens of conditioning frames are in the video's own grid and count
like the others, and so does the reference frame that DiffSynth-Studio puts before it.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from layersync_core import BlockStackAdapter, ForwardCall, ModelLayout, latent_grid

if TYPE_CHECKING:
    from torch import Tensor


def _grids(call: ForwardCall) -> list[tuple[int, int, int]]:
    """Return (T, H, W) of every sample: the original Wan takes a list of videos, which may differ in size."""
    patch = call.model.patch_size
    return [
        tuple(size // step for size, step in zip(video.shape[1:], patch, strict=True)) for video in call.arguments["x"]
    ]


def _grid(call: ForwardCall) -> tuple[int, int, int] | None:
    grids = set(_grids(call))
    largest = max(grids, key=prod)
    alone = len(grids) == 1 and prod(largest) == call.tokens
    # A sequence with fewer tokens than its largest video is reported by the grid check.
    return largest if alone or prod(largest) > call.tokens else None


def _real(call: ForwardCall) -> Tensor | None:
    """Return (B, S) bool: every sample is padded to the forward's ``seq_len``."""
    import torch

    counts = [prod(grid) for grid in _grids(call)]
    if set(counts) == {call.tokens}:
        return None
    position_S = torch.arange(call.tokens, device=call.arguments["x"][0].device)
    return torch.stack([position_S < count for count in counts])


_latents = latent_grid("hidden_states", lambda model: model.config.patch_size)

adapter = BlockStackAdapter(
    family="wan",
    model_classes=("WanTransformer3DModel", "WanVACETransformer3DModel", "WanAnimateTransformer3DModel"),
    derived_block="WanTransformerBlock",
    stacks="blocks",
    width="patch_embedding.out_channels",
    image_tokens=lambda call: prod(_latents(call)),
    grid=_latents,
    video=True,
    forks=[
        ModelLayout(  # the original repository, musubi-tuner
            model_classes="WanModel",
            block_class="WanAttentionBlock",
            stacks="blocks",
            width="dim",
            real=_real,
            grid=_grid,
            video=True,
        ),
        ModelLayout(  # DiffSynth-Studio, which calls the blocks itself
            model_classes="WanModel",
            block_class="DiTBlock",
            stacks="blocks",
            width="dim",
            grid=latent_grid("x", lambda model: model.patch_size),
            video=True,
        ),
    ],
)
