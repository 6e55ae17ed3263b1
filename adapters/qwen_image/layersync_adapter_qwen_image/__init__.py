"""LayerSync adapter for Qwen Image, Edit, Layered and 2.1.

A ControlNet's residuals are added after a block, so the block's output is what it was before them. 2.1 has one
sequence: text, with the references somewhere in it, followed by the generated image.
"""

from __future__ import annotations

import cmath
from math import prod
from typing import TYPE_CHECKING, Any

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout

if TYPE_CHECKING:
    from torch import Tensor


def _images(call: ForwardCall) -> list[list[tuple[int, int, int]]]:
    """Return the (T, H, W) of each sample's images; a flat list means one image per sample."""
    shapes: Any = call.arguments["img_shapes"] or []
    return [list(sample) if isinstance(sample[0], (list, tuple)) else [sample] for sample in shapes]


def _generated(call: ForwardCall) -> Tensor | None:
    """Return (S,) or (B, S) bool: the first image is generated, references follow.

    The layered model generates every image but the last.
    """
    import torch

    counts = [sum(map(prod, images[:-1] if _layered(call) else images[:1])) for images in _images(call)]
    if all(count == call.tokens for count in counts):
        return None
    positions = torch.arange(call.tokens, device=call.arguments["hidden_states"].device)
    # Some trainers pass the shapes of one sample for the whole batch.
    return positions < counts[0] if len(set(counts)) == 1 else torch.stack([positions < count for count in counts])


def _generated_by_rotation(call: ForwardCall) -> Tensor | None:
    """Return (S,) bool from the rotations of the image tokens, complex numbers (S, D): the first one's angle is the
    image's number, counted from 0, and -1 for the layered model's reference.
    """
    import torch

    turn_S = call.block["image_rotary_emb"][0][:, 0]
    return torch.view_as_real(turn_S * cmath.exp(1j))[:, 1].abs() > 1e-3 if _layered(call) else turn_S == 1


def _layered(call: ForwardCall) -> bool:
    return type(call.model.pos_embed).__name__ == "QwenEmbedLayer3DRope"


def _grid(call: ForwardCall) -> tuple[int, int, int] | None:
    images = _images(call)
    alone = images and all(sample == images[0] and len(sample) == 1 for sample in images)
    frames, rows, columns = images[0][0] if alone else (0, 0, 0)
    return (frames, rows, columns) if frames * rows * columns == call.tokens else None


def _places(call: ForwardCall) -> list[list[tuple[int, int]]]:
    """Return where the images of each sample are in the sequence of musubi-tuner's 2.1, the generated one last."""
    given = call.arguments
    text, slots = given["encoder_hidden_states"], given["image_slots"]
    sizes = [item.shape[1] for item in (*(given["reference_latents"] or ()), given["hidden_states"])]
    lengths, mask = given["txt_seq_lens"], given["encoder_hidden_states_mask"]
    if lengths is None:  # read from the mask, for which the model itself waits as well
        lengths = [text.shape[1]] * len(text) if mask is None else mask.sum(1).tolist()
    places = []
    for before, length in zip(slots or [()] * len(text), lengths, strict=True):
        starts = [int(slot) + sum(sizes[:number]) for number, slot in enumerate((*before, length))]
        places.append([(start, start + size) for start, size in zip(starts, sizes, strict=True)])
    return places


def _counts(call: ForwardCall) -> tuple[int, int]:
    """Return how many tokens 2.1 generates, and how many there are, the same for all samples except for padding."""
    if "img_mask" not in call.arguments:
        places = _places(call)
        start, stop = places[0][-1]
        return stop - start, max(sample[-1][1] for sample in places)
    *references, generated = (prod(shape) for shape in _images(call)[0])
    # The text has one position for every four tokens of a reference.
    text = call.arguments["encoder_hidden_states"].shape[1] - sum(references) // 4
    return generated, int(text) + sum(references) + generated


def _alone(call: ForwardCall) -> bool:
    """Return whether 2.1 has no references, and the generated tokens of every sample at the end."""
    if "img_mask" in call.arguments:
        return len(_images(call)[0]) == 1
    places = _places(call)
    return all(sample == places[0] and len(sample) == 1 for sample in places)


def _target(call: ForwardCall) -> Tensor | None:
    import torch

    if _alone(call):
        return None
    if "img_mask" not in call.arguments:
        return _marked(call, slice(-1, None))
    positions = torch.arange(call.tokens, device=call.arguments["hidden_states"].device)
    return positions >= call.tokens - _counts(call)[0]


def _real(call: ForwardCall) -> Tensor | None:
    """Return (S,) or (B, S) bool, False for the text that contains 2.1's references, and for padding."""
    import torch

    if _alone(call):
        return None
    if "img_mask" not in call.arguments:
        return _marked(call, slice(None))
    image = call.arguments["img_mask"][0]  # all samples have their images at the same positions
    # With the length of the result given, this doesn't wait for the device.
    return torch.repeat_interleave(image, torch.where(image, 4, 1), output_size=call.tokens)


def _marked(call: ForwardCall, images: slice) -> Tensor:
    import torch

    mask = torch.zeros(call.batch, call.tokens, dtype=torch.bool)
    for sample, places in enumerate(_places(call)):
        for start, stop in places[images]:
            mask[sample, start:stop] = True
    return mask.to(call.arguments["hidden_states"].device, non_blocking=True)


def _grid_of_last(call: ForwardCall) -> tuple[int, int, int] | None:
    frames, rows, columns = _images(call)[0][-1]
    return (frames, rows, columns) if frames * rows * columns == call.tokens else None


adapter = BlockStackAdapter(
    family="qwen_image",
    model_classes="QwenImageTransformer2DModel",  # diffusers and musubi-tuner
    derived_block="QwenImageTransformerBlock",
    stacks=[BlockStack("transformer_blocks", element=1)],  # (text, image)
    embedder="img_in",
    width="inner_dim",
    target=_generated,
    grid=_grid,
    forks=[
        ModelLayout(  # 2.1: diffusers, ai-toolkit, and musubi-tuner, which derives it from its class for the others
            model_classes="QwenImage21Transformer2DModel",
            derived_block="QwenImage21TransformerBlock",
            stacks=[BlockStack("transformer_blocks", joined="last")],  # [text, generated]
            width="inner_dim",
            # References are inside the text, so with references the whole sequence is used.
            image_tokens=lambda call: _counts(call)[0 if _alone(call) else 1],
            joined_tokens=lambda call: _counts(call)[1] if call.arguments else None,
            target=_target,
            real=_real,
            grid=_grid_of_last,
        ),
        ModelLayout(  # DiffSynth-Studio, which calls the blocks itself
            model_classes="QwenImageDiT",
            derived_block="QwenImageTransformerBlock",
            stacks=[BlockStack("transformer_blocks", element=1)],
            embedder="img_in",
            width="img_in.out_features",
            block_target=_generated_by_rotation,
        ),
    ],
)
