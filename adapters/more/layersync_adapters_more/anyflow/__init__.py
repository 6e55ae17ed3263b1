"""LayerSync adapter for AnyFlow; the related AnyFlowFAR, which works on chunks of frames, is another class."""

from __future__ import annotations

from math import prod

from layersync_core import BlockStackAdapter, ForwardCall


def _grid(call: ForwardCall) -> tuple[int, int, int]:
    frames, _, rows, columns = call.arguments["hidden_states"].shape[1:]
    patch = call.model.config.patch_size
    return frames // patch[0], rows // patch[1], columns // patch[2]


adapter = BlockStackAdapter(
    family="anyflow",
    model_classes="AnyFlowTransformer3DModel",
    derived_block="AnyFlowTransformerBlock",
    stacks="blocks",
    width="patch_embedding.out_channels",
    image_tokens=lambda call: prod(_grid(call)),
    grid=_grid,
    video=True,
)
