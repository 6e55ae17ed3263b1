"""The tasks: small models and the data that each learns, all from installed packages."""

# Shapes: N samples, C channels, T frames, H height, W width

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.effect.drawn import LETTERS, PLAIN, bouncing, glyphs
from layersync_core import Modality
from layersync_plugin_trainer.data import SOURCES, Dataset, split

Source = Callable[[tuple[int, ...]], tuple[str, Tensor, Tensor]]
"""Returns name, samples in [-1, 1] and classes for the shape of a sample."""
HELD_OUT = 0.221
"""Share of the samples that training never sees: 397 of the 1797 digits."""
WIDTH, BLOCKS = 96, 12
PROBED_TIMES = 0.2, 0.5
"""Shares of noise at which the blocks are probed: little noise, and half noise."""


@dataclass(frozen=True)
class Task:
    """A model and its data; it tells the trainer how to feed the model, as an adapter's ``tiny`` module does.

    Attributes:
        title: Title in the table.
        family: Family of the model's adapter.
        shape: Shape of one sample, (C, H, W) or (C, T, H, W).
        tiny_model: Returns the model with new weights.
        example_inputs: Returns forward arguments for a number of samples.
        source: The data.
        batch_size: Samples per step: 2048 tokens, and 1024 in the study of depth.
        labels: Name of the class labels among the inputs; None if the model is not conditioned on the class.
        blocks: Number of the model's blocks.
        times: Shares of noise at which the blocks are probed. CKA is measured at the first.
        deep: Whether it is also measured what the model does without some of its blocks.
        held_out: Share of the samples that training never sees.
        seen: Number of training samples that the classifiers of samples and of states are trained on; 0: all.
        called: Whether it is predicted from the vanilla model whether LayerSync helps.
        precision: Mixed precision of the training, as accelerate names it.
    """

    title: str
    family: str
    shape: tuple[int, ...]
    tiny_model: Callable[[], nn.Module]
    example_inputs: Callable[[nn.Module, int], dict[str, Any]]
    source: Source
    batch_size: int
    labels: str | None = None
    blocks: int = BLOCKS
    times: tuple[float, ...] = PROBED_TIMES
    deep: bool = False
    held_out: float = HELD_OUT
    seen: int = 0
    called: bool = False
    precision: Literal["no", "bf16"] = "no"
    sample: str = "hidden_states"
    timestep: str = "timestep"

    @property
    def modality(self) -> Modality:
        """The modality of a sample."""
        return "image" if len(self.shape) == 3 else "video"

    @property
    def axes(self) -> str:
        """Axes of the noisy sample."""
        return "BCHW" if self.modality == "image" else "BCTHW"

    def classes(self, model: nn.Module) -> int:
        """Return how many classes a DiT knows."""
        config: Any = model.config
        return int(config.num_embeds_ada_norm)

    def data(self) -> Dataset:
        """Return the samples, split."""
        return split(*self.source(self.shape), self.held_out)


def _dit(
    size: int, patch: int, classes: int, blocks: int = BLOCKS, width: int = WIDTH, told: bool = True
) -> dict[str, Any]:
    """Return what a task of square images needs to know of a DiT; if it is not told the classes, it knows only one."""
    # Heads of 16 channels, or those of the DiTs of the paper.
    known, heads = classes if told else 1, 6 if width >= 384 else width // 16

    def build() -> nn.Module:
        from diffusers import DiTTransformer2DModel

        model: nn.Module = DiTTransformer2DModel(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            in_channels=1,
            num_layers=blocks,
            sample_size=size,
            patch_size=patch,
            num_embeds_ada_norm=known,
        )
        return model

    def inputs(model: nn.Module, count: int) -> dict[str, Any]:
        return {
            "hidden_states": torch.randn(count, 1, size, size),
            "timestep": torch.full((count,), 500.0),
            # The number after the last class means no class.
            "class_labels": torch.arange(count) % known if told else torch.full((count,), known),
        }

    return {
        "family": "dit",
        "shape": (1, size, size),
        "tiny_model": build,
        "example_inputs": inputs,
        "labels": "class_labels" if told else None,
        "blocks": blocks,
    }


def _wan(size: int, patch: int, blocks: int = BLOCKS, width: int = WIDTH) -> dict[str, Any]:
    """Return what a task of clips of four square frames needs to know of a Wan."""

    def build() -> nn.Module:
        from diffusers import WanTransformer3DModel

        model: nn.Module = WanTransformer3DModel(
            patch_size=(1, patch, patch),
            num_attention_heads=4,
            attention_head_dim=width // 4,
            in_channels=1,
            out_channels=1,
            text_dim=16,
            freq_dim=32,
            ffn_dim=4 * width,
            num_layers=blocks,
        )
        return model

    def inputs(model: nn.Module, count: int) -> dict[str, Any]:
        # One text for all clips: the model is unconditional.
        return {
            "hidden_states": torch.randn(count, 1, 4, size, size),
            "timestep": torch.randint(0, 1000, (count,)),
            "encoder_hidden_states": torch.randn(count, 4, 16),
        }

    return {
        "family": "wan",
        "shape": (1, 4, size, size),
        "tiny_model": build,
        "example_inputs": inputs,
        "blocks": blocks,
    }


def _faces(shape: tuple[int, ...]) -> tuple[str, Tensor, Tensor]:
    from skimage.data import lfw_subset

    images = torch.tensor(lfw_subset(), dtype=torch.float32)[:, None]  # (200, 1, 25, 25) in [0, 1]
    images = torch.nn.functional.interpolate(images, shape[1:], mode="bilinear", antialias=True)
    # Only the first hundred are faces.
    return "faces and other patches", images * 2 - 1, (torch.arange(len(images)) >= 100).long()


TASKS: Mapping[str, Task] = {
    "digits": Task(title="digits", source=SOURCES["image"], batch_size=128, **_dit(8, 2, 10)),
    "faces": Task(title="faces", source=_faces, batch_size=128, **_dit(16, 4, 2)),
    "shapes": Task(
        title="moving shapes (Wan)",
        source=SOURCES["video"],
        batch_size=32,
        **_wan(8, 2),
    ),
}
"""Digits: scikit-learn's, 8x8. Faces: scikit-image's ``lfw_subset``, 16x16. Shapes: clips of 4 frames of 8x8."""


def digits(blocks: int) -> Task:
    """Return the digits for a DiT of some depth, with what the study of depth measures."""
    return Task(
        title=f"digits, {blocks} blocks",
        source=SOURCES["image"],
        batch_size=64,
        times=(0.2, 0.5, 0.8),
        deep=True,
        **_dit(8, 2, 10, blocks),
    )


DEPTHS = 12, 24, 8
DEEP_TASKS: Mapping[str, Task] = {f"digits-{blocks}": digits(blocks) for blocks in DEPTHS}
"""Those of the study of depth, in the order in which they are trained."""


def _setting(title: str, source: Source, batch_size: int, model: dict[str, Any]) -> Task:
    return Task(
        title=title,
        source=source,
        batch_size=batch_size,
        times=(0.5, 0.8),
        held_out=1 / 40,
        seen=4000,
        called=True,
        **model,
    )


def faint(source: Source) -> Source:
    """Return the same samples at 0.4 of their contrast, so that there is more noise beside them at every time."""

    def of(shape: tuple[int, ...]) -> tuple[str, Tensor, Tensor]:
        name, samples, labels = source(shape)
        return f"faint {name}", 0.4 * samples, labels

    return of


def plain_glyphs(shape: tuple[int, ...]) -> tuple[str, Tensor, Tensor]:
    """Return the glyphs of the letters that stay distinct when they are small."""
    return glyphs(shape, letters=PLAIN)


NARROW = 64


def _glyphs(blocks: int, told: bool = False, patch: int = 2, width: int = NARROW) -> dict[str, Any]:
    return _dit(8, patch, len(PLAIN), blocks, width, told)


SETTINGS: Mapping[str, Task] = {
    "glyphs-24": _setting("glyphs, 24 blocks", plain_glyphs, 64, _glyphs(24)),
    "glyphs-12": _setting("glyphs, 12 blocks", plain_glyphs, 64, _glyphs(12)),
    "glyphs-6": _setting("glyphs, 6 blocks", plain_glyphs, 64, _glyphs(6)),
    "glyphs-12-fine": _setting("glyphs by pixel, 12 blocks", plain_glyphs, 32, _glyphs(12, patch=1, width=32)),
    "glyphs-24-told": _setting("glyphs by class, 24 blocks", plain_glyphs, 64, _glyphs(24, told=True)),
    "glyphs-24-faint": _setting("faint glyphs, 24 blocks", faint(plain_glyphs), 64, _glyphs(24)),
    "discs-24": _setting("bouncing discs (Wan), 24 blocks", bouncing, 16, _wan(16, 4, 24, NARROW)),
}
"""Those on which the prediction is tested; they differ in depth, data, labels and noise."""
MAIN_SETTING = "glyphs-24"
REPEATED_SETTING = "discs-24"
"""The one whose first seeds had samples closer to the data with the pair."""
GPU_TASK = "glyphs-gpu"
ON_GPU: Mapping[str, Task] = {
    GPU_TASK: Task(
        title="glyphs, DiT-S/2",
        source=glyphs,
        batch_size=256,
        times=(0.5, 0.8),
        held_out=1 / 40,
        seen=4000,
        precision="bf16",
        **_dit(16, 2, len(LETTERS), 12, 384, told=False),
    )
}
"""A DiT of the size of DiT-S/2 (Peebles and Xie, arXiv 2212.09748, table 1) on 64 tokens."""
EVERY_TASK: Mapping[str, Task] = {**TASKS, **DEEP_TASKS, **SETTINGS, **ON_GPU}
