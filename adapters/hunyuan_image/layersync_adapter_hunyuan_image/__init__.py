"""LayerSync adapter for HunyuanImage 2.1 and its refiner, whose condition is in the channels of the latents."""

from __future__ import annotations

from typing import Any

from layersync_core import BlockStack, BlockStackAdapter, ModelLayout, latent_grid


def _patch(model: Any) -> tuple[int, ...]:
    patch = getattr(model, "config", model).patch_size
    return (1, *patch)[-3:]  # the refiner's latents have frames


adapter = BlockStackAdapter(
    family="hunyuan_image",
    model_classes="HunyuanImageTransformer2DModel",
    derived_block="HunyuanImageTransformerBlock",
    # (image, text)
    stacks=[BlockStack("transformer_blocks", element=0), BlockStack("single_transformer_blocks", element=0)],
    embedder="x_embedder",
    width="x_embedder.proj.out_channels",
    grid=latent_grid("hidden_states", _patch),
    forks=[
        ModelLayout(  # the original repository's, as in sd-scripts
            model_classes="HYImageDiffusionTransformer",
            derived_block="MMDoubleStreamBlock",
            # (image, text), then one tensor [image, text].
            stacks=[BlockStack("double_blocks", element=0), BlockStack("single_blocks", joined="first")],
            embedder="img_in",
            width="hidden_size",
            grid=latent_grid("hidden_states", _patch),
        ),
    ],
)
