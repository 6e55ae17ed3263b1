"""LayerSync adapter for HunyuanVideo 1.0, 1.5 and FramePack.

The frames that an image-to-video model replaces or concatenates by channel are in the video's own grid and count like
the others. FramePack's clean frames are references: their tokens come before the generated ones.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout, joined_text, latent_grid

if TYPE_CHECKING:
    from torch import Tensor

# Clean frames, their positions, and their downscaling factor; in diffusers and in musubi-tuner.
_CLEAN = (
    ("latents_clean", "indices_latents_clean", 1),
    ("latents_history_2x", "indices_latents_history_2x", 2),
    ("latents_history_4x", "indices_latents_history_4x", 4),
    ("clean_latents", "clean_latent_indices", 1),
    ("clean_latents_2x", "clean_latent_2x_indices", 2),
    ("clean_latents_4x", "clean_latent_4x_indices", 4),
)


def _patch(model: Any) -> tuple[int, int, int]:
    if hasattr(model, "config_patch_size"):  # musubi-tuner's FramePack
        return model.config_patch_size_t, model.config_patch_size, model.config_patch_size
    return model.config.patch_size_t, model.config.patch_size, model.config.patch_size


_grid = latent_grid("hidden_states", _patch)


def _generated_count(call: ForwardCall) -> int:
    return prod(_grid(call))


def _packed_count(call: ForwardCall) -> int:
    """Return the number of FramePack's video tokens: its patch embedder sees only the generated ones."""
    count = _generated_count(call)
    for name, positions, shrunk in _CLEAN:
        latents = call.arguments.get(name)
        if latents is not None and call.arguments.get(positions) is not None:
            frames, rows, columns = latents.shape[2:]
            count += -(-frames // shrunk) * -(-rows // (2 * shrunk)) * -(-columns // (2 * shrunk))
    return count


def _packed_target(call: ForwardCall) -> Tensor | None:
    import torch

    first = call.tokens - _generated_count(call)
    return torch.arange(call.tokens, device=call.arguments["hidden_states"].device) >= first if first else None


def _packed_grid(call: ForwardCall) -> tuple[int, int, int] | None:
    return _grid(call) if call.tokens == _generated_count(call) else None


adapter = BlockStackAdapter(
    family="hunyuan_video",
    model_classes="HunyuanVideoTransformer3DModel",
    derived_block=("HunyuanVideoTransformerBlock", "HunyuanVideoTokenReplaceTransformerBlock"),
    stacks=[BlockStack("transformer_blocks", element=0), BlockStack("single_transformer_blocks", element=0)],
    embedder="x_embedder",
    width="x_embedder.proj.out_channels",
    grid=_grid,
    video=True,
    forks=[
        ModelLayout(
            model_classes="HunyuanVideo15Transformer3DModel",
            derived_block="HunyuanVideo15TransformerBlock",
            stacks=[BlockStack("transformer_blocks", element=0)],
            embedder="x_embedder",
            width="x_embedder.proj.out_channels",
            grid=_grid,
            video=True,
        ),
        ModelLayout(  # FramePack: diffusers, musubi-tuner
            model_classes=("HunyuanVideoFramepackTransformer3DModel", "HunyuanVideoTransformer3DModelPacked"),
            derived_block="HunyuanVideoTransformerBlock",
            stacks=[BlockStack("transformer_blocks", element=0), BlockStack("single_transformer_blocks", element=0)],
            width="x_embedder.proj.out_channels",
            image_tokens=_packed_count,
            target=_packed_target,
            grid=_packed_grid,
            video=True,
        ),
        ModelLayout(  # 1.0: the original repository, musubi-tuner
            model_classes="HYVideoDiffusionTransformer",
            derived_block="MMDoubleStreamBlock",
            # (video, text), then one tensor [video, text].
            stacks=[BlockStack("double_blocks", element=0), BlockStack("single_blocks", joined="first")],
            embedder="img_in",
            width="hidden_size",
            joined_tokens=joined_text("text_states", "double_blocks"),
            grid=latent_grid("x", lambda model: model.patch_size),
            video=True,
        ),
        ModelLayout(  # 1.5: musubi-tuner
            model_classes="HunyuanVideo_1_5_DiffusionTransformer",
            derived_block="MMDoubleStreamBlock",
            stacks=[BlockStack("double_blocks", element=0)],
            embedder="img_in",
            width="hidden_size",
            grid=latent_grid("hidden_states", lambda model: model.patch_size),
            video=True,
        ),
    ],
)
