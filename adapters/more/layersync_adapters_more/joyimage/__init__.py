"""LayerSync adapter for JoyImage Edit and Edit Plus.

In the blocks the tokens of the generated image come first and those of the images to edit follow, in Edit Plus and also
in Edit, whose forward has the generated one last in its argument.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout

if TYPE_CHECKING:
    from torch import Tensor


def _grid(call: ForwardCall) -> tuple[int, int, int]:
    """Return (T, H, W) of all images, each of which has its own frames."""
    latents, patch = call.arguments["hidden_states"], call.model.config.patch_size
    items = latents.shape[1] if latents.ndim == 6 else 1
    frames, rows, columns = (size // step for size, step in zip(latents.shape[-3:], patch, strict=True))
    return items * frames, rows, columns


def _first_image(call: ForwardCall) -> Tensor | None:
    import torch

    latents = call.arguments["hidden_states"]
    if latents.ndim < 6:
        return None
    first: Tensor = torch.arange(call.tokens, device=latents.device) < call.tokens // latents.shape[1]
    return first


def _first_of(call: ForwardCall, images: int | None) -> Tensor:
    """Return (B, S) bool, True for the tokens of a sample's first images (None: all images), without the padding."""
    import torch

    counts = [sum(map(prod, shapes[:images])) for shapes in call.arguments["shape_list"]]
    place = torch.arange(call.tokens, device=call.arguments["hidden_states"].device)
    return torch.stack([place < count for count in counts])


_STACK = BlockStack("double_blocks", element=0)  # (image, text)
adapter = BlockStackAdapter(
    family="joyimage",
    model_classes="JoyImageEditTransformer3DModel",
    derived_block="JoyImageTransformerBlock",
    stacks=[_STACK],
    width="img_in.out_channels",
    image_tokens=lambda call: prod(_grid(call)),
    target=_first_image,
    grid=_grid,
    forks=[
        ModelLayout(
            model_classes="JoyImageEditPlusTransformer3DModel",
            derived_block="JoyImageEditPlusTransformerBlock",
            stacks=[_STACK],
            width="img_in.out_channels",
            image_tokens=lambda call: call.arguments["hidden_states"].shape[1],
            target=lambda call: _first_of(call, 1),
            real=lambda call: _first_of(call, None),
        )
    ],
)
