"""The measurements of a model's blocks, as plain numbers."""

# Shapes: G blocks of one kind

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from layersync_core.protocol import Block
from layersync_core.suggest.tally import Level

if TYPE_CHECKING:
    from typing_extensions import Self

Grid = list[list[float | None]]
"""A number for every two blocks, by position; None where the two cannot be paired, or nothing was measured."""


@dataclass(frozen=True)
class SkippedRun:
    """A skipped block, or run of blocks, and by how much the loss rose without it."""

    first: int
    last: int
    rise: float


@dataclass(frozen=True)
class Recommended:
    """A pair to train with, blocks counted from 1, why, and when to stop.

    Attributes:
        student: Student block.
        teacher: Teacher block.
        reason: What was measured, and what is the paper's rule.
        stop: Share of the training after which to switch the term off, 1 for never; None where that was not measured.
    """

    student: int
    teacher: int
    reason: str
    stop: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether the measurements favour LayerSync: yes, no or unknown."""

    answer: str
    reason: str


@dataclass
class Figures:
    """What was measured.

    Attributes:
        model: Class name.
        described: The blocks.
        noise_levels: The model's own time for each grid, 0 to 1; None for forwards whose call does not show it.
        cka: For each noise level, linear CKA of every two blocks.
        cosine: The mean cosine of their tokens.
        centered_cosine: The same after subtracting the mean token.
        gap: Accuracy of the teacher's linear probe minus the student's; empty if no classes are known. Rows are
            students.
        gap_error: Standard error of that difference, of paired samples.
        probe: Accuracy of a linear probe of each block at each noise level; empty if no classes are known.
        chance: Accuracy of always guessing the most common class; None if no classes are known.
        samples: Samples whose classes were known.
        skip: How much the loss rises without one block; empty if that was not asked for.
        skip_runs: The same for runs of several blocks.
        skip_loss: The loss of the whole model on the same batches; None if that was not asked for.
        loss: The loss of the whole model on the batches of ``between``; None if nothing was left out.
        between: How much it rises without the blocks after a student, up to its teacher: the depth LayerSync takes.
        forwards: Number of measured forwards.
        fed: Which inputs were not the user's own, in a sentence; empty if none.
        sub_sample: How the numbers were estimated, and from which tokens.
    """

    model: str
    described: Sequence[Block]
    noise_levels: list[float | None] = field(default_factory=list)
    cka: list[Grid] = field(default_factory=list)
    cosine: list[Grid] = field(default_factory=list)
    centered_cosine: list[Grid] = field(default_factory=list)
    gap: list[Grid] = field(default_factory=list)
    gap_error: list[Grid] = field(default_factory=list)
    probe: list[list[float]] = field(default_factory=list)
    chance: float | None = None
    samples: int = 0
    skip: list[float | None] = field(default_factory=list)
    skip_runs: list[SkippedRun] = field(default_factory=list)
    skip_loss: float | None = None
    loss: float | None = None
    between: list[SkippedRun] = field(default_factory=list)
    forwards: int = 0
    fed: str = ""
    sub_sample: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: str,
        blocks: Sequence[Block],
        levels: Mapping[float | None, Level],
        forwards: int,
        sub_sample: dict[str, Any],
    ) -> Self:
        """Return the figures that follow from the sums of each noise level."""
        found = cls(model, blocks, list(levels), forwards=forwards, sub_sample=sub_sample)
        for level in levels.values():
            grids = [torch.full((len(blocks), len(blocks)), torch.nan, dtype=torch.float64) for _ in range(3)]
            for indices, tally in level.tallies.items():
                place = torch.tensor(indices)
                cka, *cosines = tally.cka(), tally.cosine, tally.centered
                if cka is not None:
                    grids[0][place[:, None], place] = cka
                for grid, cosine in zip(grids[1:], cosines, strict=True):
                    grid[place[:, None], place] = torch.as_tensor(cosine).cpu() / tally.tokens
            for name, grid in zip(("cka", "cosine", "centered_cosine"), grids, strict=True):
                getattr(found, name).append(plain(grid))
        return found

    def mean(self, name: str, student: int, teacher: int) -> float | None:
        """Return the mean over noise levels of a measure of two blocks; None where nothing was measured.

        Args:
            name: ``cka``, ``cosine``, ``centered_cosine``, ``gap`` or ``gap_error``.
            student: Index of one block, from 0.
            teacher: Index of the other.
        """
        values = [value for grid in getattr(self, name) if (value := grid[student][teacher]) is not None]
        return sum(values) / len(values) if values else None

    def rise_between(self, student: int, teacher: int) -> float | None:
        """Return the share by which the loss rises without the blocks after a student, up to its teacher.

        Args:
            student: Index of the student, from 0.
            teacher: Index of the teacher.

        Returns:
            The share; None where it was not measured.
        """
        rises = [run.rise for run in self.between if (run.first, run.last) == (student + 2, teacher + 1)]
        return rises[0] / self.loss if rises and self.loss else None


def plain(grid: Tensor) -> Grid:
    """Return a grid as lists, None for NaN."""
    return [[None if value != value else round(value, 6) for value in row] for row in grid.tolist()]
