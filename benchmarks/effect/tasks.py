"""The tasks: three small models and the data that each learns, all from installed packages."""

# Shapes: N samples, C channels, T frames, H height, W width

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core import Modality
from layersync_plugin_trainer.data import SOURCES, Dataset, split

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
        source: Returns name, samples in [-1, 1] and classes for a shape.
        batch_size: Samples per step: 2048 tokens, and 1024 in the study of depth.
        labels: Name of the class labels among the inputs; None if the model is not conditioned on the class.
        blocks: Number of the model's blocks.
        times: Shares of noise at which the blocks are probed. CKA is measured at the first.
        deep: Whether it is also measured what the model does without some of its blocks.
    """

    title: str
    family: str
    shape: tuple[int, ...]
    tiny_model: Callable[[], nn.Module]
    example_inputs: Callable[[nn.Module, int], dict[str, Any]]
    source: Callable[[tuple[int, ...]], tuple[str, Tensor, Tensor]]
    batch_size: int
    labels: str | None = None
    blocks: int = BLOCKS
    times: tuple[float, ...] = PROBED_TIMES
    deep: bool = False
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
        return split(*self.source(self.shape), HELD_OUT)


def _dit(size: int, patch: int, classes: int, blocks: int = BLOCKS) -> dict[str, Any]:
    def build() -> nn.Module:
        from diffusers import DiTTransformer2DModel

        model: nn.Module = DiTTransformer2DModel(
            num_attention_heads=6,
            attention_head_dim=WIDTH // 6,
            in_channels=1,
            num_layers=blocks,
            sample_size=size,
            patch_size=patch,
            num_embeds_ada_norm=classes,
        )
        return model

    def inputs(model: nn.Module, count: int) -> dict[str, Any]:
        return {
            "hidden_states": torch.randn(count, 1, size, size),
            "timestep": torch.full((count,), 500.0),
            "class_labels": torch.arange(count) % classes,
        }

    return {
        "family": "dit",
        "shape": (1, size, size),
        "tiny_model": build,
        "example_inputs": inputs,
        "labels": "class_labels",
        "blocks": blocks,
    }


def _wan() -> nn.Module:
    from diffusers import WanTransformer3DModel

    model: nn.Module = WanTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=WIDTH // 4,
        in_channels=1,
        out_channels=1,
        text_dim=16,
        freq_dim=32,
        ffn_dim=4 * WIDTH,
        num_layers=BLOCKS,
    )
    return model


def _wan_inputs(model: nn.Module, count: int) -> dict[str, Any]:
    # One text for all clips: the model is unconditional.
    return {
        "hidden_states": torch.randn(count, 1, 4, 8, 8),
        "timestep": torch.randint(0, 1000, (count,)),
        "encoder_hidden_states": torch.randn(count, 4, 16),
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
        family="wan",
        shape=(1, 4, 8, 8),
        tiny_model=_wan,
        example_inputs=_wan_inputs,
        source=SOURCES["video"],
        batch_size=32,
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
EVERY_TASK: Mapping[str, Task] = {**TASKS, **DEEP_TASKS}
