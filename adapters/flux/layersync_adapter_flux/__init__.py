"""LayerSync adapter for Flux and Flux Kontext.

A ControlNet's residuals are added after a block, so the block's output is what it was before them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layersync_core.adapter import BlockStack, BlockStackAdapter, ForwardCall

if TYPE_CHECKING:
    from torch import Tensor


def _generated(call: ForwardCall) -> Tensor | None:
    """Return (S,) bool: Kontext's reference tokens follow the generated ones and carry a 1 in the first position id."""
    ids = call.arguments["img_ids"]
    if ids is None:
        return None
    ids = ids[0] if ids.ndim == 3 else ids  # a batch axis is the older form
    return ids[:, 0] == 0  # type: ignore[no-any-return]


adapter = BlockStackAdapter(
    family="flux",
    model_classes="FluxTransformer2DModel",
    stacks=[
        BlockStack("transformer_blocks", element=1),
        # (text, image), and in older diffusers one tensor [text, image].
        BlockStack("single_transformer_blocks", element=1, joined="last"),
    ],
    embedder="x_embedder",
    width="inner_dim",
    target=_generated,
)
