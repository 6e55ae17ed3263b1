"""LayerSync adapter for Stable Diffusion XL: the transformer blocks of its UNet, in execution order.

A ControlNet's and a T2I-Adapter's residuals are added after a block, so the block's output is what it was before them.
There is no grid: the tokens' resolution differs from stage to stage.
"""

from __future__ import annotations

from typing import Any

from layersync_core import BlockStack, BlockStackAdapter, ModelLayout


def _unet(model: Any) -> list[BlockStack]:
    # Other diffusers UNets have the same class and the same blocks; only SDXL has this embedding.
    is_sdxl = model.config.addition_embed_type == "text_time"
    return _stacks(model, "down_blocks", "mid_block", "up_blocks") if is_sdxl else []


def _sd_scripts_unet(model: Any) -> list[BlockStack]:
    return _stacks(model, "input_blocks", "middle_block", "output_blocks")


def _stacks(model: Any, *parts: str) -> list[BlockStack]:
    """Return every transformer's blocks; a stage is a resolution, as a fraction of the latents'."""
    level, stacks = 0, []
    for part in parts:  # by name: named_modules() of the whole model lists the middle last
        whole = getattr(model, part)
        # Distilled models such as Segmind Vega and KOALA have no middle.
        for path, module in () if whole is None else whole.named_modules(prefix=part):
            kinds = {base.__name__ for base in type(module).__mro__}
            if "Transformer2DModel" in kinds:
                stacks.append(BlockStack(f"{path}.transformer_blocks", stage=f"1/{2**level} resolution"))
            level += ("Downsample2D" in kinds) - ("Upsample2D" in kinds)
    return stacks


def _width(model: Any, block: Any) -> int:
    return int(block.norm1.normalized_shape[0])


adapter = BlockStackAdapter(
    family="sdxl",
    model_classes="UNet2DConditionModel",
    derived_block="BasicTransformerBlock",
    stacks=_unet,
    width=_width,
    forks=[
        ModelLayout(
            model_classes="SdxlUNet2DConditionModel",
            derived_block="BasicTransformerBlock",
            stacks=_sd_scripts_unet,
            width=_width,
        )
    ],
)
