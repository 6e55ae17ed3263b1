"""LayerSync adapter for ERNIE-Image.

diffusers and DiffSynth-Studio run the blocks on (S, B, D), musubi-tuner and ai-toolkit on (B, S, D).
"""

from __future__ import annotations

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, latent_grid


def _joined(call: ForwardCall) -> int | None:
    text = call.arguments.get("text_bth")
    return None if text is None else call.tokens + int(text.shape[1])


adapter = BlockStackAdapter(
    family="ernie_image",
    model_classes=("ErnieImageTransformer2DModel", "ErnieImageDiT"),
    derived_block="ErnieImageSharedAdaLNBlock",
    stacks=BlockStack("layers", joined="first", sequence_first=None),  # [image, text]
    embedder="x_embedder",
    width="hidden_size",
    joined_tokens=_joined,
    grid=latent_grid("hidden_states", lambda model: (1, model.patch_size, model.patch_size)),
)
