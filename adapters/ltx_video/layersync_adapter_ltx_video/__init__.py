"""LayerSync adapter for LTX-Video and LTX-2.

LTX-2 generates video and audio side by side; the video tokens are aligned. Reference videos have tokens in the same
sequence: before the generated ones in LTX-Video, after them in LTX-2, unless per-token timesteps show that only those
at the other end are clean. If the call does not say how many frames are generated (LTX-Video's condition pipeline, the
original LTX-2), every token counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout

if TYPE_CHECKING:
    from torch import Tensor

Grid = tuple[int, int, int]


def _generated_grid(call: ForwardCall) -> Grid | None:
    sizes = [call.arguments[name] for name in ("num_frames", "height", "width")]
    return None if None in sizes else (sizes[0], sizes[1], sizes[2])


def _generated_grid_2(call: ForwardCall) -> Grid | None:
    # LTX-2 takes sizes of latents, LTX-Video of tokens; both are released with patches of 1.
    sizes, config = _generated_grid(call), call.model.config
    if sizes is None:
        return None
    frames, rows, columns = sizes
    return -(-frames // config.patch_size_t), -(-rows // config.patch_size), -(-columns // config.patch_size)


def _grid(generated: Callable[[ForwardCall], Grid | None]) -> Callable[[ForwardCall], Grid | None]:
    def grid(call: ForwardCall) -> Grid | None:
        sizes = generated(call)
        return sizes if sizes is not None and sizes[0] * sizes[1] * sizes[2] == call.tokens else None

    return grid


def _target(
    generated: Callable[[ForwardCall], Grid | None], references_first: bool
) -> Callable[[ForwardCall], Tensor | None]:
    def target(call: ForwardCall) -> Tensor | None:
        import torch

        frames, rows, columns = generated(call) or (1, 1, call.tokens)
        references = call.tokens - frames * rows * columns
        if references <= 0:
            return None
        position_S = torch.arange(call.tokens, device=call.arguments["hidden_states"].device)
        after_S, before_S = position_S >= references, position_S < call.tokens - references
        usual_S, other_S = (after_S, before_S) if references_first else (before_S, after_S)
        timestep = call.arguments["timestep"]
        if timestep.numel() != call.batch * call.tokens or call.tokens == 1:
            return usual_S
        noisy_BS = timestep.reshape(call.batch, -1) != 0
        swapped_B = (noisy_BS & ~usual_S).any(1) & ~(noisy_BS & ~other_S).any(1)
        return torch.where(swapped_B[:, None], other_S, usual_S)

    return target


def _noisy(call: ForwardCall) -> Tensor | None:
    """Return (B, S) bool: DiffSynth-Studio's references are the clean tokens at the end of the sequence.

    Clean tokens before them are conditioning frames in the video's own grid.
    """
    timesteps = call.arguments.get("video_timesteps")
    if timesteps is None or timesteps.numel() % call.tokens:
        return None
    noisy_BS = timesteps.reshape(-1, call.tokens) != 0
    return noisy_BS.flip(1).cumsum(1).flip(1).bool().expand(call.batch, -1)  # type: ignore[no-any-return]


adapter = BlockStackAdapter(
    family="ltx_video",
    model_classes="LTXVideoTransformer3DModel",
    derived_block="LTXVideoTransformerBlock",
    stacks="transformer_blocks",
    embedder="proj_in",
    width="proj_in.out_features",
    target=_target(_generated_grid, references_first=True),
    grid=_grid(_generated_grid),
    video=True,
    forks=[
        ModelLayout(
            model_classes="LTX2VideoTransformer3DModel",
            derived_block="LTX2VideoTransformerBlock",
            stacks=[BlockStack("transformer_blocks", element=0)],  # (video, audio)
            embedder="proj_in",
            width="proj_in.out_features",
            target=_target(_generated_grid_2, references_first=False),
            grid=_grid(_generated_grid_2),
            video=True,
        ),
        ModelLayout(  # LTX-2: the original repository, DiffSynth-Studio
            model_classes="LTXModel",
            derived_block="BasicAVTransformerBlock",
            stacks=[BlockStack("transformer_blocks", element=(0, "x"))],  # (video, audio), each an object
            embedder="patchify_proj",
            width="inner_dim",
            target=_noisy,
            video=True,
        ),
    ],
)
