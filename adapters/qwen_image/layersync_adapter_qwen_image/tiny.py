"""A Qwen Image of a few thousand weights, its Edit and Layered forms, and inputs for them."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn

from layersync_core import Modality

_ROWS = 4  # of 2x2 patches
modality: Modality = "image"
sample, axes = "hidden_states", "B(HW)(C22)"
grid = _ROWS, _ROWS
timestep = "timestep"


def tiny_model(**settings: Any) -> nn.Module:
    """Return a Qwen Image of 4 blocks for packed latents of 4 channels."""
    model: nn.Module = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 6, 6),
        **settings,
    )
    return model


def tiny_edit() -> nn.Module:
    """Return the form of Edit 2511: reference tokens are modulated as for timestep 0."""
    return tiny_model(zero_cond_t=True)


def tiny_layered() -> nn.Module:
    """Return the layered form: several images are generated together, and the last one is the reference."""
    return tiny_model(use_layer3d_rope=True, use_additional_t_cond=True)


def tiny_21() -> nn.Module:
    """Return a Qwen Image 2.1 of 4 blocks, whose sequence is text and images."""
    from diffusers import QwenImage21Transformer2DModel

    model: nn.Module = QwenImage21Transformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=12,
        mlp_ratio=1,
        axes_dims_rope=(4, 6, 6),
    )
    return model


variants = {
    "Qwen Image, Edit": tiny_model,
    "Qwen Image Edit 2511": tiny_edit,
    "Qwen Image Layered": tiny_layered,
    "Qwen Image 2.1": tiny_21,
}


def example_inputs(
    model: nn.Module, batch_size: int, references: int | None = None, images: int | None = None, text: int = 5
) -> dict[str, Any]:
    """Return random arguments of the model's forward.

    Args:
        model: The model that ``tiny_model`` returned.
        batch_size: Samples.
        references: Reference images, as Edit has them; their tokens follow the generated ones, and those of 2.1 stand
            in the text.
        images: Generated images of a sample; more than one in the layered model alone.
        text: Text tokens.
    """
    layered = "Layer" in type(model.pos_embed).__name__
    images = (2 if layered else 1) if images is None else images
    references = int(layered) if references is None else references
    shapes = [(1, _ROWS, _ROWS)] * images + [(1, 2, _ROWS)] * references
    if "21" in type(model).__name__:
        return _inputs_21(batch_size, shapes[::-1], text)
    inputs = {
        "hidden_states": torch.randn(batch_size, sum(rows * columns for _, rows, columns in shapes), 16),
        "encoder_hidden_states": torch.randn(batch_size, text, 12),
        "encoder_hidden_states_mask": torch.ones(batch_size, text, dtype=torch.long),
        "timestep": torch.rand(batch_size),
        "img_shapes": [shapes] * batch_size,
    }
    if layered:
        inputs["additional_t_cond"] = torch.zeros(batch_size, dtype=torch.long)
    return inputs


def _inputs_21(batch_size: int, shapes: list[tuple[int, int, int]], text: int) -> dict[str, Any]:
    """Return the arguments of 2.1's forward: the text has a place for every four tokens of an image.

    Args:
        batch_size: Samples.
        shapes: (T, H, W) of the references and of the generated image.
        text: Text tokens, with a reference behind each of the first.
    """
    mask = [False] * text
    for number, (_, rows, columns) in enumerate(shapes[:-1]):
        place = min(number + 1, text) + sum(mask)
        mask[place:place] = [True] * (rows * columns // 4)
    return {
        "hidden_states": torch.randn(batch_size, sum(rows * columns for _, rows, columns in shapes), 16),
        "encoder_hidden_states": torch.randn(batch_size, len(mask), 12),
        "timestep": torch.rand(batch_size),
        "img_shapes": [shapes] * batch_size,
        "img_mask": torch.tensor([mask + [True] * (_ROWS * _ROWS // 4)] * batch_size),
    }
