"""LayerSync adapter for LongCat Image, Image Edit and Video.

The tokens of a video's conditioning frames are in its own grid and count like the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout, latent_grid

if TYPE_CHECKING:
    from torch import Tensor


def _generated(call: ForwardCall) -> Tensor | None:
    """Return (S,) bool: the first position id is 1 for generated tokens, 2 for the references, which follow."""
    ids = call.arguments["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids  # a batch axis is the older form
    return ids[:, 0] < 2  # type: ignore[no-any-return]


adapter = BlockStackAdapter(
    family="longcat",
    model_classes="LongCatImageTransformer2DModel",
    derived_block="LongCatImageTransformerBlock",
    stacks=[BlockStack("transformer_blocks", element=1), BlockStack("single_transformer_blocks", element=1)],
    embedder="x_embedder",
    width="inner_dim",
    target=_generated,
    forks=[
        ModelLayout(  # the original repository, DiffSynth-Studio
            model_classes="LongCatVideoTransformer3DModel",
            derived_block="LongCatSingleStreamBlock",
            stacks=[BlockStack("blocks", element=0, joined="first")],  # video, or (video, keys and values)
            embedder="x_embedder",
            width="x_embedder.proj.out_channels",
            grid=latent_grid("hidden_states", lambda model: model.patch_size),
            video=True,
        ),
    ],
)
