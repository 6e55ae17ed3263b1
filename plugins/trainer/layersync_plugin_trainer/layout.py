"""Convert between plain samples (images, clips, sounds) and the tensor that a model takes as its sample."""

# Shapes: B batch, C channels, T frames, H height, W width, L positions of a sound

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import Tensor

from layersync_core import ConfigError, Modality, Tiny

OWN_LOOP = "train it in a loop of your own with layersync_core.attach"
_PLAIN = {"image": "CHW", "video": "CTHW", "audio": "CL"}
_AXES = "CTHhWwL"
"""The axes of a plain sample in order; h and w are the rows and columns inside a token."""


@dataclass(frozen=True)
class Layout:
    """How a family arranges a sample.

    Attributes:
        modality: image, video or audio.
        shape: Shape of one plain sample: (C, H, W), (C, T, H, W) or (C, L).
        split: The same sizes with those axes split that are separate in the model's sample.
        order: The permutation of these axes in the model's sample.
        merged: Sizes of the model's sample without B.
        channel: Position of C in the model's sample, counting B.
    """

    modality: Modality
    shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    merged: tuple[int, ...]
    channel: int

    def to_model(self, plain: Tensor) -> Tensor:
        """Return plain samples (B, *shape) in the model's arrangement."""
        apart = plain.reshape(-1, *self.split).permute(0, *(1 + axis for axis in self.order))
        return apart.reshape(-1, *self.merged)

    def from_model(self, value: Tensor) -> Tensor:
        """Return the model's arrangement as plain samples (B, *shape); the inverse of ``to_model``."""
        apart = value.reshape(-1, *(self.split[axis] for axis in self.order))
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return apart.permute(0, *(1 + axis for axis in back)).reshape(-1, *self.shape)


def layout_of(tiny: Tiny, sample: Tensor) -> Layout:
    """Read the arrangement that a tiny module declares.

    Args:
        tiny: The module.
        sample: The noisy sample among its example inputs, with B in front.

    Raises:
        ConfigError: The sample has other sizes, or its axes are not those of its modality.
    """
    grid, channels = getattr(tiny, "grid", ()), getattr(tiny, "channels", None)
    axes = tiny.axes.removeprefix("B").replace("22", "hw")
    groups = ["".join(group) for group in re.findall(r"\((\w+)\)|(\w)", axes)]
    merged: list[int] = []
    sizes: dict[str, int] = {}
    for group, size in zip(groups, sample.shape[1:], strict=False):
        merged.append(channels if channels and group == "C" else size)
        inner = (size // 4, 2, 2) if group == "Chw" else grid if len(group) > 1 else merged[-1:]
        sizes.update(zip(group, inner, strict=False))
    letters, plain = "".join(groups), _PLAIN.get(tiny.modality, "")
    still = {"T"} if tiny.modality == "image" and sizes.get("T") == 1 else set()
    if (
        len(groups) != sample.dim() - 1
        or len(letters) != len(sizes)
        or {*sizes} - {"h", "w"} - still != {*plain}
        or merged != [math.prod(sizes[axis] for axis in group) for group in groups]
    ):
        said = f"{tiny.modality} with axes {tiny.axes}{f' and grid {grid}' if grid else ''}"
        raise ConfigError(
            f"{name_of(tiny)} declares its sample as {said}, but this model's has shape {tuple(sample.shape)}; an "
            f"image has C, H, W, video C, T, H, W, audio C, L: correct axes and grid there, or {OWN_LOOP}"
        )
    split = [axis for axis in _AXES if axis in sizes]
    return Layout(
        modality=tiny.modality,
        shape=tuple(sizes[axis] * sizes.get(axis.lower(), 1) for axis in plain),
        split=tuple(sizes[axis] for axis in split),
        order=tuple(split.index(axis) for axis in letters),
        merged=tuple(merged),
        channel=1 + next(place for place, group in enumerate(groups) if "C" in group),
    )


def name_of(tiny: Tiny) -> str:
    """Return the name of a tiny module for errors."""
    return getattr(tiny, "__name__", type(tiny).__name__)
