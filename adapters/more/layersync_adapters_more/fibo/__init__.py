"""LayerSync adapter for Bria's FIBO and FIBO 2.

FIBO 2 has image and text in one sequence, the text as a 'gist' of few tokens: before the image and its references, or
after them if the samples of a batch have gists of different lengths.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layersync_core import BlockStack, BlockStackAdapter, ForwardCall, ModelLayout, joined_text

if TYPE_CHECKING:
    from torch import Tensor


def _generated(call: ForwardCall) -> Tensor:
    """Return (S,) bool: references follow the generated tokens, with their number in the first position id."""
    ids = call.arguments["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    return ids[:, 0] == 0  # type: ignore[no-any-return]


def _images(call: ForwardCall, references: bool) -> Tensor:
    """Return (S,) bool: the tokens of the generated image, and optionally those of the references after it."""
    import torch

    image, patch = call.arguments["hidden_states"], call.model.config.patch_size
    counts = [item.shape[2] // patch * (item.shape[3] // patch) for item in [image, *_references(call)]]
    place, gist = torch.arange(call.tokens, device=image.device), call.tokens - sum(counts)
    start = gist * _gist_is_first(call)
    images: Tensor = (place >= start) & (place < start + (sum(counts) if references else counts[0]))
    return images


def _references(call: ForwardCall) -> list[Tensor]:
    return call.arguments.get("context_latents") or []


def _gist_is_first(call: ForwardCall) -> Tensor | bool:
    """Return whether all texts have gists of the same length, in integers and without waiting for the device."""
    mask, sizes = call.arguments.get("encoder_attention_mask"), call.model.config
    if mask is None:
        return True
    span = sizes.gist_max_text_len - sizes.gist_min_text_len
    text = (mask.long().sum(dim=1) - sizes.gist_min_text_len).clamp(0, span)
    length = sizes.min_num_gist_tokens * span + text * (sizes.max_num_gist_tokens - sizes.min_num_gist_tokens)
    steps = -(-length // (span * sizes.gist_step)) * sizes.gist_step
    steps = steps.clamp(sizes.min_num_gist_tokens, sizes.max_num_gist_tokens)
    return (steps == steps[0]).all()  # type: ignore[no-any-return]


adapter = BlockStackAdapter(
    family="fibo",
    model_classes="BriaFiboTransformer2DModel",
    derived_block="BriaFiboTransformerBlock",
    stacks=[
        BlockStack("transformer_blocks", element=1),  # (text, image)
        BlockStack("single_transformer_blocks", joined="last"),  # [text, image]
    ],
    embedder="x_embedder",
    width="inner_dim",
    joined_tokens=joined_text("encoder_hidden_states", "transformer_blocks"),
    target=_generated,
    forks=[
        ModelLayout(
            model_classes="BriaFibo2Transformer2DModel",
            derived_block="BriaFibo2TransformerBlock",
            stacks="layers",
            width="config.dim",
            target=lambda call: _images(call, references=False),
            real=lambda call: _images(call, references=True),
        )
    ],
)
