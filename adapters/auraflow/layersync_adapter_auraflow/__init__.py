"""LayerSync adapter for AuraFlow."""

from __future__ import annotations

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, latent_grid


def _joined(call: ForwardCall) -> int | None:
    """Return the length of a joined sequence without joint blocks, whose text already includes the registers."""
    text = call.arguments.get("encoder_hidden_states")
    if text is None or call.model.joint_transformer_blocks:
        return None
    return int(call.model.register_tokens.shape[1] + text.shape[1] + call.tokens)


adapter = BlockStackAdapter(
    family="auraflow",
    model_classes="AuraFlowTransformer2DModel",
    derived_block="AuraFlowJointTransformerBlock",
    stacks=[
        BlockStack("joint_transformer_blocks", element=1),  # (registers and text, image)
        BlockStack("single_transformer_blocks", joined="last"),  # [registers, text, image]
    ],
    embedder="pos_embed",
    width="inner_dim",
    joined_tokens=_joined,
    grid=latent_grid("hidden_states", lambda model: (1, *2 * (model.config.patch_size,))),
)
