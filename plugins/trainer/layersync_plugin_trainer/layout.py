"""Between plain samples (images, clips, waves) and the tensor that a model calls its sample."""

# Shapes: B batch, C channels, T frames, H height, W width, L audio positions, S tokens, D channels of a token

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from layersync_core import ConfigError

Modality = Literal["image", "video", "audio"]


@dataclass(frozen=True)
class Layout:
    """How a family arranges a sample.

    Attributes:
        modality: What a sample shows.
        shape: Of one plain sample: (C, H, W), (C, T, H, W) or (C, L).
        kind: ``plain`` (as it is), ``frame`` (an image as a clip of one frame), ``tokens`` (B, S, D), one token a
            position, ``packed`` (B, S, D), one token for 2x2 pixels as in Flux.
    """

    modality: Modality
    shape: tuple[int, ...]
    kind: Literal["plain", "frame", "tokens", "packed"]

    def to_model(self, plain: Tensor) -> Tensor:
        """Return plain samples (B, *shape) as the model wants them."""
        if self.kind == "frame":
            return plain[:, :, None]
        if self.kind == "tokens":
            return plain.flatten(2).transpose(1, 2)
        if self.kind == "packed":
            b, c, h, w = plain.shape
            tokens = plain.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
            return tokens.reshape(b, h * w // 4, c * 4)
        return plain

    def from_model(self, value: Tensor) -> Tensor:
        """Return the model's arrangement as plain samples (B, *shape); the inverse of ``to_model``."""
        if self.kind == "frame":
            return value[:, :, 0]
        if self.kind == "tokens":
            return value.transpose(1, 2).reshape(value.shape[0], *self.shape)
        if self.kind == "packed":
            c, h, w = self.shape
            pixels = value.reshape(value.shape[0], h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
            return pixels.reshape(value.shape[0], c, h, w)
        return value


def layout_of(sample: Tensor, inputs: Mapping[str, Any], hint: str | None = None) -> Layout:
    """Tell the arrangement from an example.

    4-D is an image (B, C, H, W); 5-D a clip (B, C, T, H, W), an image when T is 1. 3-D is tokens: of a clip or an
    image where the inputs say ``num_frames``, ``height`` and ``width``; else of a square image when their number is
    a square (2x2 pixels a token when D is divisible by 4); else audio.

    Args:
        sample: The example's sample.
        inputs: All inputs of the example.
        hint: ``modality`` of the family's tiny module; needed where the rules above would be wrong.

    Raises:
        ConfigError: The sample has another number of dimensions, or the hint does not fit it.
    """
    sizes = tuple(sample.shape[1:])
    layout: Layout | None = None
    if len(sizes) == 3:
        layout = Layout("image", sizes, "plain")
    elif len(sizes) == 4:
        image = sizes[1] == 1
        layout = Layout("image", (sizes[0], *sizes[2:]), "frame") if image else Layout("video", sizes, "plain")
    elif len(sizes) == 2:
        layout = _token_layout(*sizes, inputs, hint)
    if layout is None or hint not in (None, layout.modality):
        said = f" as {hint}" if hint else ""
        raise ConfigError(
            f"a sample of shape {tuple(sample.shape)} cannot be read{said}; image is (B, C, H, W), video "
            "(B, C, T, H, W), tokens (B, S, D); a tiny module may define modality, sample_of and with_sample"
        )
    return layout


def _token_layout(tokens: int, width: int, inputs: Mapping[str, Any], hint: str | None) -> Layout | None:
    if hint == "audio":
        return Layout("audio", (width, tokens), "tokens")
    frames, rows, columns = (_size(inputs.get(name)) for name in ("num_frames", "height", "width"))
    if frames and rows and columns and frames * rows * columns == tokens and hint != "image":
        return Layout("video", (width, frames, rows, columns), "tokens")
    if rows and columns and rows * columns == tokens:
        return Layout("image", (width, rows, columns), "tokens")
    side = math.isqrt(tokens)
    if side * side == tokens and tokens > 1:
        if width % 4 == 0:
            return Layout("image", (width // 4, 2 * side, 2 * side), "packed")
        return Layout("image", (width, side, side), "tokens")
    return None if hint else Layout("audio", (width, tokens), "tokens")


def _size(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
