# Shapes: B batch, T frames, P tokens per frame, C channels, H rows, W columns, N patch tokens, D channels
"""Settings, clips and states shared by CREPA's tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from layersync_core import Attachment, attach
from tests.models import build

BACKBONE = {"crepa_enabled": True, "crepa_block_index": 0, "crepa_feature_source": "backbone"}
GRID = (3, 16)  # frames and tokens per frame of the small Wan


def by_frame(state_BSD: Tensor) -> Tensor:
    return state_BSD.unflatten(1, GRID)


def part(sync: Attachment) -> Any:
    return sync.modules()["crepa"]


def encoding(folder: str, **more: Any) -> dict[str, Any]:
    return {
        "crepa_enabled": True,
        "crepa_block_index": 1,
        "crepa_model": folder,
        "crepa_encoder_image_size": 16,
        "crepa_pixels": "pixel_values",
        **more,
    }


def clip(samples: int = 2, frames: int = 5) -> Tensor:
    """Return (B, T, 3, H, W) from -1 to 1."""
    return torch.rand(samples, frames, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def wan_loss(config: dict[str, Any], batch: Any = None) -> Tensor:
    """Return the term of one step with a batch that a loader has just yielded."""
    model, inputs = build("wan")
    torch.manual_seed(1)
    with attach(model, config) as sync:
        if batch is not None:
            next(iter(DataLoader([batch], batch_size=None)))
        model(**inputs)
        return sync.loss().detach()
