"""Data that is drawn, as much as is asked for: glyphs of the fonts in matplotlib, and clips of discs that bounce."""

# Shapes: N samples, T frames, H height, W width, K discs

from __future__ import annotations

import math
import string
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from layersync_plugin_trainer.data import generator

LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
PLAIN = "ABCEHKLOSTUX"
"""Letters that stay distinct at 8x8."""
FACES = "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono"
_CANVAS = 64
GLYPHS, CLIPS = 24_000, 6_000


def glyphs(shape: tuple[int, ...], count: int = GLYPHS, letters: str = LETTERS) -> tuple[str, Tensor, Tensor]:
    """Return letters and figures (the class) in six faces, each turned, sheared, scaled and moved at random.

    Args:
        shape: (1, H, W).
        count: Number of samples.
        letters: Which of them.

    Returns:
        Name, (N, 1, H, W) in [-1, 1] and (N,) classes.
    """
    draw = generator(0, "glyphs")
    upright = torch.stack([_rendered(letter, face) for letter in letters for face in FACES])
    kind = torch.arange(count) % len(letters)
    chosen = kind * len(FACES) + torch.randint(len(FACES), (count,), generator=draw)
    turn, shear, scale = (torch.randn(count, generator=draw) for _ in range(3))
    angle, size = (0.12 * turn).clamp(-0.35, 0.35), (1 + 0.08 * scale).clamp(0.8, 1.2)
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    linear = torch.stack([cos, -sin, sin, cos], 1).view(count, 2, 2)
    sheared = torch.eye(2).repeat(count, 1, 1)
    sheared[:, 0, 1] = (0.12 * shear).clamp(-0.3, 0.3)
    shift = 0.25 * (torch.rand(count, 2, 1, generator=draw) - 0.5)
    theta = torch.cat([linear @ sheared, shift], 2)
    images = []
    for part, matrix in zip(chosen.split(1024), theta.split(1024), strict=True):  # not all at once, to save memory
        grid = F.affine_grid(matrix, [len(part), 1, _CANVAS, _CANVAS], align_corners=False)
        warped = F.grid_sample(upright[part, None], grid, align_corners=False)
        images.append(F.interpolate(warped, shape[1:], mode="bilinear", antialias=True))
    return "glyphs", torch.cat(images) * 2 - 1, kind


def _rendered(letter: str, face: str) -> Tensor:
    """Return a letter in the middle of a canvas, (H, W) in [0, 1]."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    font = FT2Font(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{face}.ttf"))
    font.set_size(46, 72)
    font.set_text(letter)
    font.draw_glyphs_to_bitmap()
    found = torch.tensor(font.get_image().copy(), dtype=torch.float32) / 255
    high, wide = found.shape
    top, left = (_CANVAS - high) // 2, (_CANVAS - wide) // 2
    return F.pad(found, (left, _CANVAS - wide - left, top, _CANVAS - high - top))


def bouncing(shape: tuple[int, ...], count: int = CLIPS) -> tuple[str, Tensor, Tensor]:
    """Return clips of two or three discs of equal mass (the class) that bounce off each other and off the walls.

    Args:
        shape: (1, T, H, W).
        count: Number of clips.

    Returns:
        Name, (N, 1, T, H, W) in [-1, 1] and (N,) classes.
    """
    _, frames, height, width = shape
    draw = generator(0, "bouncing")
    kind, radius, steps = torch.arange(count) % 2, 0.13, 8
    there = torch.arange(3) < (kind + 2)[:, None]  # (N, K)
    # In three columns, so that no two overlap at the start.
    place = torch.rand(count, 3, 2, generator=draw) * (1 - 2 * radius) + radius
    place[..., 0] = torch.tensor([radius + 0.02, 0.5, 1 - radius - 0.02])
    angle = 2 * math.pi * torch.rand(count, 3, generator=draw)
    speed = torch.stack([angle.cos(), angle.sin()], -1) * 0.35 / steps
    seen = []
    for frame in range(frames):
        seen.append(place.clone())
        for _ in range(steps if frame + 1 < frames else 0):
            place, speed = _moved(place, speed, there, radius)
    centres = torch.stack(seen, 1)  # (N, T, K, 2)
    y = (torch.arange(height) + 0.5)[:, None] / height - centres[..., 0, None, None]
    x = (torch.arange(width) + 0.5) / width - centres[..., 1, None, None]
    inside = torch.sigmoid(4 * max(height, width) * (radius - (x.square() + y.square()).sqrt()))
    clips = (inside * there[:, None, :, None, None]).amax(2)
    return "bouncing discs", clips[:, None] * 2 - 1, kind


def _moved(place: Tensor, speed: Tensor, there: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Return places and speeds, (N, K, 2), a moment later."""
    place = place + speed
    outside = ((place < radius) & (speed < 0)) | ((place > 1 - radius) & (speed > 0))
    speed = torch.where(outside, -speed, speed)
    for one, two in ((0, 1), (0, 2), (1, 2)):
        apart = place[:, two] - place[:, one]
        normal = apart / apart.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        closing = ((speed[:, one] - speed[:, two]) * normal).sum(-1, keepdim=True)
        hit = (apart.norm(dim=-1, keepdim=True) < 2 * radius) & (closing > 0)
        hit = hit & (there[:, one] & there[:, two])[:, None]
        # Discs of equal mass exchange their speeds along the line between them.
        push = torch.where(hit, closing * normal, torch.zeros(()))
        speed[:, one] -= push
        speed[:, two] += push
    return place, speed
