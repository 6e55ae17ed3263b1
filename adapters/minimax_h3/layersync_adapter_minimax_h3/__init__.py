"""LayerSync adapter for MiniMax H3, whose blocks return one packed sequence of text, video and audio rows.

Which rows are video is read from their positions; tags cannot be used, since images in the prompt have video's tags.
Rows of conditioning frames and references are among them, with a timestep of their own, while the text has that of the
generated rows; if the noise of those is as low (0.999, where 1 is clean), all of them count. Audio rows aren't aligned.
"""

# Shapes: B batch, S rows of the packed sequence

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout

if TYPE_CHECKING:
    from torch import Tensor

Packed = Callable[[ForwardCall], "tuple[Tensor, Tensor, Tensor]"]
"""Returns the positions of the video rows and of the text rows, and the timestep of every row, (S,) or (B, S)."""


def _packed(call: ForwardCall) -> tuple[Tensor, Tensor, Tensor]:
    given = call.arguments
    return given["video_indices"], given["text_indices"], given["timestep"][given["timestep_indices"]]


def _packed_by_ai_toolkit(call: ForwardCall) -> tuple[Tensor, Tensor, Tensor]:
    return call.arguments["video_indices"], call.arguments["text_indices"], call.arguments["row_timesteps"]


def _packed_by_diffsynth(call: ForwardCall) -> tuple[Tensor, Tensor, Tensor]:
    video, text = (call.arguments[f"{kind}_pos_info"]["position_ids"].flatten().long() for kind in ("img", "text"))
    timesteps, rows = (call.arguments[name].flatten() for name in ("unique_timesteps", "inverse_indices"))
    return video, text, timesteps[rows.long()]


def _is_video(packed: Packed) -> Callable[[ForwardCall], Tensor]:
    def real(call: ForwardCall) -> Tensor:
        video, _, timestep = packed(call)
        return timestep.new_zeros(timestep.shape[-1]).index_fill(0, video.to(timestep.device), 1).bool()

    return real


def _is_generated(packed: Packed) -> Callable[[ForwardCall], Tensor]:
    def target(call: ForwardCall) -> Tensor:
        _, text, timestep = packed(call)
        return _is_video(packed)(call) & (timestep == timestep[..., text[:1]])

    return target


def _length(packed: Packed) -> Callable[[ForwardCall], int]:
    return lambda call: int(packed(call)[2].shape[-1])


adapter = BlockStackAdapter(
    family="minimax_h3",
    model_classes="MiniMaxH3Transformer3DModel",  # diffusers, SimpleTuner
    derived_block="MiniMaxH3TransformerBlock",
    stacks="transformer_blocks",
    width="proj_in.out_features",
    image_tokens=_length(_packed),
    target=_is_generated(_packed),
    real=_is_video(_packed),
    video=True,
    forks=[
        ModelLayout(  # ai-toolkit
            model_classes="MiniMaxH3Transformer",
            derived_block="MiniMaxH3Block",
            stacks="blocks",
            width="video_patch_proj.out_features",
            image_tokens=_length(_packed_by_ai_toolkit),
            target=_is_generated(_packed_by_ai_toolkit),
            real=_is_video(_packed_by_ai_toolkit),
            video=True,
        ),
        ModelLayout(  # DiffSynth-Studio
            model_classes="MiniMaxH3DiT",
            derived_block="MiniMaxH3DiTBlock",
            stacks=BlockStack("blocks", batched=False),
            width="hidden_size",
            image_tokens=_length(_packed_by_diffsynth),
            target=_is_generated(_packed_by_diffsynth),
            real=_is_video(_packed_by_diffsynth),
            video=True,
        ),
    ],
)
