"""Embedded data that needs no download (handwritten digits, moving shapes, tones), and the order of its samples."""

# Shapes: N samples, C channels, T frames, H height, W width, L audio positions

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

HELD_OUT = 0.1
"""Share of the samples that training never sees."""


@dataclass(frozen=True)
class Dataset:
    """Samples in [-1, 1] with a class each.

    Attributes:
        name: What it is, for reports.
        samples: (N, C, H, W) images, (N, C, T, H, W) video or (N, C, L) audio, training samples.
        labels: (N,) int64.
        held_out: Samples for evaluation, shaped like ``samples``.
        held_out_labels: Their classes.
    """

    name: str
    samples: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor


def load(modality: str, shape: tuple[int, ...], classes: int | None = None) -> Dataset:
    """Return the data of a modality in the shape a model wants.

    Args:
        modality: image, video or audio.
        shape: Of one sample: (C, H, W), (C, T, H, W) or (C, L).
        classes: Keep only samples of this many classes, the first ones; None keeps all.
    """
    name, samples, labels = SOURCES[modality](shape)
    if classes is not None:
        kept = labels < classes
        samples, labels = samples[kept], labels[kept]
    return split(name, samples, labels, HELD_OUT)


def split(name: str, samples: Tensor, labels: Tensor, held_out: float) -> Dataset:
    """Split samples into training data and a fixed held-out share."""
    order = torch.randperm(len(samples), generator=generator(0, "split"))
    cut = len(samples) - max(1, int(len(samples) * held_out))
    train, rest = order[:cut], order[cut:]
    return Dataset(name, samples[train], labels[train], samples[rest], labels[rest])


def generator(seed: int, *names: object) -> torch.Generator:
    """Return a CPU generator that depends only on the seed and the names."""
    text = "/".join(str(name) for name in (seed, *names))
    digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def positions(seed: int, first: int, count: int, size: int) -> Tensor:
    """Return the samples at places ``first`` to ``first + count`` of an endless shuffled stream.

    Each pass over the data has its own permutation, drawn from (seed, pass), so the order needs no state.

    Returns:
        (count,) int64 in [0, size).
    """
    place = torch.arange(first, first + count)
    passes = [_permutation(seed, number, size) for number in range(first // size, (first + count - 1) // size + 1)]
    return torch.cat(passes)[place - (first // size) * size]


@lru_cache(maxsize=4)
def _permutation(seed: int, number: int, size: int) -> Tensor:
    return torch.randperm(size, generator=generator(seed, "pass", number))


def _digits(shape: tuple[int, ...]) -> tuple[str, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    channels, height, width = shape
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # stored as 0 to 16
    if (height, width) != (8, 8):
        images = torch.nn.functional.interpolate(images, (height, width), mode="bilinear", antialias=True)
    return "handwritten digits", images.expand(-1, channels, -1, -1), torch.tensor(digits.target)


def _shapes(shape: tuple[int, ...]) -> tuple[str, Tensor, Tensor]:
    """Draw a disc, a square, a diamond or a ring (the class) that crosses the frame, with soft edges."""
    channels, frames, height, width = shape
    count = min(1024, max(64, 2**25 // (frames * height * width)))  # fewer large clips, to save memory
    draw = generator(0, "shapes")
    kind = torch.arange(count) % 4
    start, end, radius = (torch.rand(count, 2, generator=draw) for _ in range(3))
    size = 0.16 + 0.12 * radius[:, :1, None, None]  # half-width as a share of the frame
    t = torch.linspace(0, 1, frames)[None, :, None]
    centre = (0.2 + 0.6 * start[:, None]) * (1 - t) + (0.2 + 0.6 * end[:, None]) * t  # (N, T, 2)
    y = (torch.arange(height) + 0.5)[None, None, :, None] / height - centre[..., 0, None, None]
    x = (torch.arange(width) + 0.5)[None, None, None, :] / width - centre[..., 1, None, None]
    disc = (x.square() + y.square()).sqrt()
    box = torch.maximum(x.abs().expand_as(disc), y.abs().expand_as(disc))
    diamond = (x.abs() + y.abs()) / math.sqrt(2)
    ring = (disc - 0.75 * size).abs() + 0.6 * size
    distance = torch.stack([disc, box, diamond, ring])[kind, torch.arange(count)] - size  # below 0 inside
    edge = 1.0 / max(height, width)
    video = (1 - 2 * torch.sigmoid(4 * distance / edge)).clamp(-1, 1)
    return "moving shapes", video[:, None].expand(-1, channels, -1, -1, -1), kind


def _tones(shape: tuple[int, ...], count: int = 1024) -> tuple[str, Tensor, Tensor]:
    """Draw a tone of one of ten pitches (the class) with a decay; channel c is its (c + 1)-th partial, in phase."""
    channels, length = shape
    draw = generator(0, "tones")
    pitch = torch.arange(count) % 10
    decay, phase = torch.rand(2, count, 1, generator=draw)
    time = torch.linspace(0, 1, length)
    cycles = 1 + 0.25 * pitch[:, None]
    envelope = torch.exp(-2 * decay * time)
    partial = torch.arange(1, channels + 1)[None, :, None] % 4 + 1  # few partials, so that short clips resolve them
    wave = torch.sin(2 * math.pi * (cycles * time + phase)[:, None] * partial) * envelope[:, None]
    return "tones", wave, pitch


SOURCES = {"image": _digits, "video": _shapes, "audio": _tones}
"""Modality to a function from a sample's shape to (name, samples, labels)."""
