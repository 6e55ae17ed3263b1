"""LayerSync adapter for Flux.3.

The image runs through its own blocks, then together with its references and the text through joint ones. References
never count, since the image's own blocks don't contain them.
"""

from __future__ import annotations

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall


def _content(call: ForwardCall) -> int | None:
    """Return the number of tokens of the image and the references that follow it."""
    if not call.arguments:
        return None
    references = call.arguments["image_cond_hidden_states"]
    return call.tokens + (0 if references is None else int(references.shape[1]))


adapter = BlockStackAdapter(
    family="flux3",
    model_classes="Flux3Transformer2DModel",
    derived_block="Flux3ModeTransformerBlock",
    stacks=[
        BlockStack("mode_blocks.image"),
        # (text, [image, references])
        BlockStack("single_transformer_blocks", element=1, joined="first", whole=True),
    ],
    embedder="x_embedders.image",
    width="inner_dim",
    joined_tokens=_content,
)
