"""LayerSync adapter for Ideogram 4.

Text, image and padding share one packed sequence, in an order that the trainer chooses: the call says what each token
is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layersync_core import BlockStackAdapter, ForwardCall

if TYPE_CHECKING:
    from torch import Tensor

_IMAGE = 2  # text has 3, padding others


def _is_image(call: ForwardCall) -> Tensor:
    """Return (B, S) bool."""
    return call.arguments["indicator"] == _IMAGE  # type: ignore[no-any-return]


adapter = BlockStackAdapter(
    family="ideogram4",
    # The first is also ai-toolkit's, the next is musubi-tuner's and SimpleTuner's, the last DiffSynth-Studio's.
    model_classes=("Ideogram4Transformer2DModel", "Ideogram4Transformer", "Ideogram4DiT"),
    derived_block="Ideogram4TransformerBlock",
    stacks="layers",
    embedder="input_proj",  # of the whole sequence
    width="input_proj.out_features",
    real=_is_image,
)
