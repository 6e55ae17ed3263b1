"""LayerSync adapter for Cosmos Predict 1, 2 and 2.5, and for Anima, which is a Predict 2 of one frame.

In diffusers all of them are one class. A ControlNet's residual is added inside a block, so the block's output includes
it. The tokens of conditioning frames are in the video's own grid and count like the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout, latent_grid

_grid = latent_grid("hidden_states", lambda model: model.config.patch_size)


def _predict(model: Any) -> Sequence[BlockStack]:
    # The text adapter of Anima has blocks as well, and other classes may be called "Anima".
    return (BlockStack("blocks", gridded=True),) if hasattr(model, "patch_spatial") else ()


def _padded(call: ForwardCall) -> tuple[int, int, int]:
    """Return (T, H, W) of the tokens: ComfyUI's source and DiffSynth-Studio's pad the latents to whole patches."""
    model, given = call.model, call.arguments
    sizes = given["x" if "x" in given else "x_B_C_T_H_W"].shape[2:]
    steps = model.patch_temporal, model.patch_spatial, model.patch_spatial
    frames, rows, columns = (-(-size // step) for size, step in zip(sizes, steps, strict=True))
    return frames, rows, columns


adapter = BlockStackAdapter(
    family="cosmos",
    model_classes="CosmosTransformer3DModel",
    derived_block="CosmosTransformerBlock",
    stacks="transformer_blocks",
    width="patch_embed.proj.out_features",
    image_tokens=lambda call: prod(_grid(call)),
    grid=_grid,
    video=True,
    forks=[
        ModelLayout(  # Predict 2 and Anima: sd-scripts, DiffSynth-Studio, and NVIDIA's source in diffusion-pipe
            model_classes=("Anima", "AnimaDiT", "MiniTrainDIT"),
            derived_block="Block",
            stacks=_predict,
            width="model_channels",
            image_tokens=lambda call: prod(_padded(call)),
            grid=_padded,
            video=True,
        ),
    ],
)
