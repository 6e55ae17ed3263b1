"""LayerSync adapter for ACE-Step 1.5 and 1.0: audio, one row of tokens in time.

Version 1.5 makes one token of two frames, and pads an odd length by one frame of zeros: the last token counts, though
half of it is padding. Positions that the caller's attention mask excludes do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout

if TYPE_CHECKING:
    from torch import Tensor


def _real(call: ForwardCall) -> Tensor | None:
    """Return (B, S) bool: a token counts when the mask (B, T) has one of its frames."""
    from torch.nn.functional import pad

    mask = call.arguments["attention_mask"]
    if mask is None:
        return None
    frames = -(-mask.shape[1] // call.tokens)  # per token
    mask = pad(mask > 0, (0, call.tokens * frames - mask.shape[1]))
    return mask.unflatten(1, (call.tokens, frames)).any(dim=-1)  # type: ignore[no-any-return]


def _grid(argument: str) -> Callable[[ForwardCall], tuple[int, int, int]]:
    """Return a ``grid`` function for latents (B, T, C)."""
    return lambda call: (-(-call.arguments[argument].shape[1] // call.model.patch_size), 1, 1)


adapter = BlockStackAdapter(
    family="ace_step",
    model_classes="AceStepTransformer1DModel",
    derived_block="AceStepTransformerBlock",
    stacks="layers",
    width="config.hidden_size",
    grid=_grid("hidden_states"),
    video=True,
    forks=[
        ModelLayout(  # 1.5's own repository and DiffSynth-Studio
            model_classes="AceStepDiTModel",
            derived_block="AceStepDiTLayer",
            stacks=[BlockStack("layers", element=0)],
            embedder="proj_in",
            width="condition_embedder.out_features",
            real=_real,
            grid=_grid("hidden_states"),
            video=True,
        ),
        ModelLayout(  # ai-toolkit
            model_classes="DiTModel",
            block_class="DiTLayer",
            stacks="layers",
            width="condition_embedder.out_features",
            real=_real,
            grid=_grid("x"),
            video=True,
        ),
        ModelLayout(  # 1.0; latents (B, C, 16, T), one token per column
            model_classes="ACEStepTransformer2DModel",
            derived_block="LinearTransformerBlock",
            stacks="transformer_blocks",
            embedder="proj_in",
            width="inner_dim",
            real=_real,
            grid=lambda call: (call.arguments["hidden_states"].shape[-1] // call.model.patch_size[1], 1, 1),
            video=True,
        ),
    ],
)
