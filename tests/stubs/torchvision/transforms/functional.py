"""The functions behind the transforms, on PIL images; the last also takes arrays (H, W, 3) of bytes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps


def resize(image: Any, size: Sequence[int]) -> Any:
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def crop(image: Any, top: int, left: int, height: int, width: int) -> Any:
    return image.crop((left, top, left + width, top + height))


def hflip(image: Any) -> Any:
    return ImageOps.mirror(image)


def pil_to_tensor(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def to_tensor(image: Any) -> torch.Tensor:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return pil_to_tensor(image) / 255
