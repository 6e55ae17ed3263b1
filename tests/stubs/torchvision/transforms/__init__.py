"""The transforms that diffusers' DreamBooth scripts use, on PIL images."""

import random
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch

from torchvision.transforms import functional

__all__ = ["functional"]


class InterpolationMode(Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


class Compose:
    def __init__(self, transforms: Sequence[Callable[[Any], Any]]):
        self.transforms = transforms

    def __call__(self, image: Any) -> Any:
        for transform in self.transforms:
            image = transform(image)
        return image


class Resize:
    """Scale the shorter side to a size, always bilinearly."""

    def __init__(self, size: int, interpolation: InterpolationMode = InterpolationMode.BILINEAR):
        self.size = size

    def __call__(self, image: Any) -> Any:
        scale = self.size / min(image.size)
        return functional.resize(image, [round(image.height * scale), round(image.width * scale)])


class CenterCrop:
    def __init__(self, size: int):
        self.size = size

    def __call__(self, image: Any) -> Any:
        top, left = (image.height - self.size) // 2, (image.width - self.size) // 2
        return functional.crop(image, top, left, self.size, self.size)


class RandomCrop:
    def __init__(self, size: int):
        self.size = size

    @staticmethod
    def get_params(image: Any, output_size: tuple[int, int]) -> tuple[int, int, int, int]:
        height, width = output_size
        # From torch's generator, as in torchvision: --seed must decide.
        top = int(torch.randint(0, image.height - height + 1, (1,)))
        left = int(torch.randint(0, image.width - width + 1, (1,)))
        return top, left, height, width

    def __call__(self, image: Any) -> Any:
        return functional.crop(image, *self.get_params(image, (self.size, self.size)))


class RandomHorizontalFlip:
    def __init__(self, p: float = 0.5):
        self.p = p

    def __call__(self, image: Any) -> Any:
        return functional.hflip(image) if random.random() < self.p else image


class ToTensor:
    def __call__(self, image: Any) -> torch.Tensor:
        return functional.to_tensor(image)


class Normalize:
    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        self.mean, self.std = (torch.tensor(value)[:, None, None] for value in (mean, std))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return (image - self.mean) / self.std
