"""LayerSync adapter for Kandinsky 5 Video Lite and Pro.

The model takes its latents with channels last. With nabla attention the tokens of a frame are in tiles of 8x8, which no
grid describes. The image model of the same class is refused before this adapter is asked. musubi-tuner calls its model
once per sample, without a batch axis.
"""

from __future__ import annotations

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout


def _grid(call: ForwardCall) -> tuple[int, int, int] | None:
    sparse = call.arguments["sparse_params"]
    if sparse is not None and sparse["to_fractal"]:
        return None
    latents = call.arguments["hidden_states" if "hidden_states" in call.arguments else "x"]
    sizes = latents.shape[-4:-1]  # musubi-tuner's have no batch axis
    frames, rows, columns = (size // step for size, step in zip(sizes, call.model.patch_size, strict=True))
    return frames, rows, columns


adapter = BlockStackAdapter(
    family="kandinsky5_video",
    model_classes="Kandinsky5Transformer3DModel",
    derived_block="Kandinsky5TransformerDecoderBlock",
    stacks="visual_transformer_blocks",
    width="model_dim",
    grid=_grid,
    video=True,
    forks=[
        ModelLayout(  # the original repository, musubi-tuner
            model_classes="DiffusionTransformer3D",
            derived_block="TransformerDecoderBlock",
            stacks=[BlockStack("visual_transformer_blocks", batched=False)],
            width="model_dim",
            grid=_grid,
            video=True,
        ),
    ],
)
