"""CREPA as a regularizer (arXiv 2506.09229)."""

# Shapes: B batch, S tokens, T frames, P tokens per frame of the states, N of the features, D channels

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core import Block, CaptureError, ConfigError, RegularizerBase, States, Term
from layersync_plugin_crepa.config import CrepaConfig
from layersync_plugin_crepa.cutoff import SimilarityCutoff
from layersync_plugin_crepa.encoder import Encoder
from layersync_plugin_crepa.loss import Rule, frame_scores, some_frames
from layersync_plugin_crepa.pixels import Pixels
from layersync_plugin_crepa.schedule import schedule_of


class Part(nn.Module):
    """The parts saved with the run: the trained projector Linear(LayerNorm(H)), fp32, and the state of the cut-off.

    Args:
        width: Channels of the states.
        features: Channels of the features.
        cutoff: The cut-off by similarity.
    """

    def __init__(self, width: int, features: int, cutoff: SimilarityCutoff) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, dtype=torch.float32)
        self.linear = nn.Linear(width, features, dtype=torch.float32)
        self.cutoff = cutoff

    def forward(self, states: Tensor) -> Tensor:
        """Map states to the features' channels."""
        projected: Tensor = self.linear(self.norm(states))
        return projected


class Crepa(RegularizerBase):
    """Align the frames of a block with the features of the same and of neighbouring frames.

    ``loss = -weight · mean over samples of Σ_f S_f / T``; see ``loss.py``.

    Args:
        config: Enabled settings.
        run_steps: The run's number of optimiser steps, if the user gave it.

    Raises:
        ConfigError: The schedule, the encoder or the source of the pixels cannot be set up.
    """

    name = "crepa"
    order = 100

    def __init__(self, config: CrepaConfig, run_steps: Any = None) -> None:
        self._config = config
        self._weights = schedule_of(config, run_steps)
        self.schedule = self._weights if self._weights.varies else None
        self._rule = Rule(
            config.crepa_adjacent_distance,
            config.crepa_adjacent_tau,
            config.crepa_cumulative_neighbors,
            config.crepa_normalize_by_frames,
            config.crepa_normalize_neighbour_sum,
            config.crepa_spatial_align,
        )
        self._encoder: Encoder | None = None
        self._pixels: Pixels | None = None
        if config.source == "encoder":
            self._pixels = Pixels(config.crepa_pixels, config.crepa_pixels_range)
            self._encoder = Encoder(
                config.encoder,
                config.crepa_encoder_image_size,
                config.crepa_encoder_frames_batch_size,
                config.crepa_trust_remote_code,
            )
        self.module: Part | None = None

    def active(self, step: int) -> bool:
        """Return whether the term still has, or will have, a weight."""
        return self._weights.active(step) and not (self.module is not None and self.module.cutoff.over)

    def layers(self, blocks: Sequence[Block]) -> set[int]:
        """Resolve the blocks, make the projector, and return the layers to capture.

        Raises:
            ConfigError: A block is deeper than the model, its width is unknown, or its tokens have no frames.
        """
        config = self._config
        self.student = _find("crepa_block_index", config.crepa_block_index, blocks)
        self.teacher: Block | None = None
        if self._encoder is None:
            key = "crepa_block_index" if config.crepa_teacher_block_index is None else "crepa_teacher_block_index"
            self.teacher = _find(key, config.teacher, blocks)
        elif not self.student.video:
            raise ConfigError(
                "crepa_feature_source encoder aligns the frames of a video, but the tokens of this model have none; "
                "use crepa_feature_source: backbone (a model of your own needs video=True in its adapter)"
            )
        features = self._encoder.width if self._encoder else _width(self.teacher or self.student)
        cutoff = SimilarityCutoff(
            config.crepa_similarity_threshold,
            config.crepa_similarity_ema_decay,
            config.crepa_threshold_mode == "permanent",
        )
        self.module = Part(_width(self.student), features, cutoff)
        return {self.student.index, *([self.teacher.index] if self.teacher else [])}

    def describe(self) -> list[str]:
        """Return lines that name the resolved block, its target and the weight."""
        if self._encoder is None or self._pixels is None:
            features = f"{self.teacher}"
        else:
            features = f"{self._encoder.name}, pixels from {self._pixels.source}"
        return [
            f"crepa: {self.student}, crepa_block_index {self.student.index}",
            f"crepa features: {features}",
            f"crepa weight: {self._config.crepa_lambda:g}",
        ]

    def compute(self, states: States, step: int) -> Term:
        """Return the term of one step, with CREPA's metrics."""
        part = self.module
        assert part is not None  # layers() was called
        device = part.linear.weight.device
        states.trainable_tokens(self.student.index)
        student_BTPD = states.frames(self.student.index).to(device)
        target_BTND = self._target(states, student_BTPD)
        mask_BTP = self._mask(states, student_BTPD, target_BTND)
        scores = frame_scores(student_BTPD, target_BTND, self._rule, part, mask_BTP)
        alignment_B = scores.alignment
        if states.sample_weight is not None:
            alignment_B = alignment_B * states.sample_weight.to(device)
        cut = part.cutoff(scores.score)
        weight = self._weights.at(step) * (1 - cut)
        loss = -weight * alignment_B.mean()
        return Term(
            loss,
            {
                "crepa_loss": loss,
                "crepa_alignment_score": scores.score,
                "crepa_similarity_self": scores.similarity,
                "crepa_weight": weight,
                "crepa_cutoff": cut,
            },
        )

    def _target(self, states: States, student_BTPD: Tensor) -> Tensor:
        samples, frames = student_BTPD.shape[:2]
        if self.teacher is not None:
            return states.frames(self.teacher.index).detach().to(student_BTPD.device)
        assert self._encoder is not None
        assert self._pixels is not None
        pixels_BTCHW = self._pixels(samples, frames)
        # Don't encode frames that would be dropped afterwards.
        return self._encoder(some_frames(pixels_BTCHW, frames).to(student_BTPD.device, non_blocking=True))

    def _mask(self, states: States, student_BTPD: Tensor, target_BTND: Tensor) -> Tensor | None:
        if states.mask is None:
            return None
        alike = self.teacher is not None and student_BTPD.shape[:3] == target_BTND.shape[:3]
        if not alike:
            raise CaptureError(
                "the batch has reference tokens or padding, which CREPA can leave out only with backbone features of "
                "as many tokens"
            )
        return states.mask.to(student_BTPD.device).reshape(student_BTPD.shape[:3])


def _find(key: str, index: int | None, blocks: Sequence[Block]) -> Block:
    assert index is not None  # the settings were checked
    if index >= len(blocks):
        raise ConfigError(
            f"{key} is {index}, but the model has {len(blocks)} blocks; valid are 0, {blocks[0]}, to "
            f"{len(blocks) - 1}, {blocks[-1]}"
        )
    return blocks[index]


def _width(block: Block) -> int:
    if block.width is None:
        raise ConfigError(
            f"the width of {block} is unknown, and CREPA's projector needs it; its adapter must declare it (width=…)"
        )
    return block.width
