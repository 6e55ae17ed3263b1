"""LayerSync adapter for HiDream. The image comes first, in the tuples and in the joined sequences.

HiDream-E1's reference is next to the image in one latent, which the call does not reveal: its tokens count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall

if TYPE_CHECKING:
    from torch import Tensor


def _patches(call: ForwardCall) -> tuple[int, int] | None:
    """Return (rows, columns) of latents (B, C, H, W); None if the caller has patched and padded them itself."""
    latents, patch = call.arguments["hidden_states"], call.model.config.patch_size
    if latents.ndim == 3 or call.arguments["img_sizes"] is not None:
        return None
    return latents.shape[2] // patch, latents.shape[3] // patch


def _real(call: ForwardCall) -> Tensor | None:
    """Return (B, S) or (S,) bool: latents that are not square are padded to the longest sequence, at its end."""
    import torch

    masks = call.arguments.get("hidden_states_masks")  # not in the original repository
    if masks is not None:
        return masks > 0  # type: ignore[no-any-return]
    positions = torch.arange(call.tokens, device=call.arguments["hidden_states"].device)
    patches = _patches(call)
    if patches is None:
        return torch.stack([positions < rows * columns for rows, columns in call.arguments["img_sizes"]])
    real = patches[0] * patches[1]
    return None if real == call.tokens else positions < real


def _grid(call: ForwardCall) -> tuple[int, int, int] | None:
    patches = _patches(call)
    return (1, *patches) if patches and patches[0] * patches[1] == call.tokens else None


def _joined(call: ForwardCall) -> int | None:
    """Return the length of a joined sequence without dual-stream blocks: the image, T5's text and Llama's twice."""
    if call.model.double_stream_blocks:
        return None  # their output also contains the block's own Llama text
    t5, llama = (call.arguments.get(f"encoder_hidden_states_{name}") for name in ("t5", "llama3"))
    return None if t5 is None or llama is None else call.tokens + t5.shape[-2] + 2 * llama[0].shape[-2]


adapter = BlockStackAdapter(
    family="hidream",
    model_classes="HiDreamImageTransformer2DModel",
    derived_block=("HiDreamBlock", "HiDreamImageBlock"),
    stacks=[
        BlockStack("double_stream_blocks", element=0),  # (image, text)
        BlockStack("single_stream_blocks", joined="first"),  # one tensor [image, text, Llama's text of this block]
    ],
    embedder="x_embedder",
    width="inner_dim",
    joined_tokens=_joined,
    real=_real,
    grid=_grid,
)
