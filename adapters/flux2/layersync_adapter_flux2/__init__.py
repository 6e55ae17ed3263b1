"""LayerSync adapter for Flux.2, with and without reference images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout, joined_text

if TYPE_CHECKING:
    from torch import Tensor


def _generated(argument: str) -> Callable[[ForwardCall], Tensor | None]:
    """Return a ``target`` function: the first of the four position ids is 0 for generated tokens, 10, 20, … for
    references, whether these follow or, in a pass that fills a cache with them, come first.
    """

    def target(call: ForwardCall) -> Tensor | None:
        ids = call.arguments[argument]
        ids = ids[0] if ids.ndim == 3 else ids
        return ids[:, 0] == 0  # type: ignore[no-any-return]

    return target


adapter = BlockStackAdapter(
    family="flux2",
    model_classes=("Flux2Transformer2DModel", "Flux2DiT"),  # diffusers; DiffSynth-Studio
    derived_block="Flux2TransformerBlock",
    stacks=[
        BlockStack("transformer_blocks", element=1),  # (text, image)
        BlockStack("single_transformer_blocks", joined="last"),  # [text, image]
    ],
    embedder="x_embedder",
    width="inner_dim",
    joined_tokens=joined_text("encoder_hidden_states", "transformer_blocks"),
    target=_generated("img_ids"),
    forks=[
        ModelLayout(  # the original repository, musubi-tuner, ai-toolkit
            model_classes="Flux2",
            derived_block="DoubleStreamBlock",
            stacks=[
                BlockStack("double_blocks", element=0),  # (image, text)
                BlockStack("single_blocks", joined="last"),
            ],
            embedder="img_in",
            width="hidden_size",
            joined_tokens=joined_text("ctx", "double_blocks"),
            target=_generated("x_ids"),
        ),
    ],
)
