"""Flex attention, which has no backward on a CPU, as plain attention with the same mask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention import flex_attention


@contextmanager
def attention_on_the_cpu() -> Iterator[None]:
    """Let models with flex attention train here without compiling anything; their blocks' outputs are the same."""
    with (
        mock.patch.object(flex_attention, "flex_attention", _plain),
        mock.patch.object(torch, "compile", lambda function, **_: function),
    ):
        yield


def _plain(query: Tensor, key: Tensor, value: Tensor, block_mask: Any = None, scale: Any = None, **_: Any) -> Tensor:
    mask = None
    if block_mask is not None:
        sizes = (*query.shape[:3], key.shape[2])
        mask = flex_attention.create_mask(block_mask.mask_mod, *sizes, device=query.device)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
