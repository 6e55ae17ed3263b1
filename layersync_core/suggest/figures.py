"""What was measured of a model's blocks, as plain numbers."""

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
"""One number for each two blocks, by their places; None where two cannot be paired, or nothing was measured."""


@dataclass(frozen=True)
class SkippedRun:
    """A block, or a run of them, that was left out: by how much the loss rose."""

    first: int
    last: int
    rise: float


@dataclass(frozen=True)
class Recommended:
    """A pair to train with, blocks counted from 1, and why."""

    student: int
    teacher: int
    reason: str


@dataclass(frozen=True)
class Verdict:
    """Whether what was measured speaks for LayerSync: yes, no or unknown."""

    answer: str
    reason: str


@dataclass
class Figures:
    """What was measured.

    Attributes:
        model: Class name.
        described: The blocks.
        noise_levels: The model's own time of each grid, 0 to 1; None for forwards whose call does not say it.
        cka: For each noise level, linear CKA of every two blocks.
        cosine: The mean cosine of their tokens.
        centered_cosine: The same after the mean token was taken away.
        gap: The teacher's linear probe minus the student's; empty where no classes are known. Rows are students.
        probe: Accuracy of a linear probe of each block at each noise level; empty where no classes are known.
        chance: What guessing the commonest class gives; None where no classes are known.
        samples: Samples whose classes were known.
        skip: How much the loss rises where one block is left out; empty where that was not asked for.
        skip_runs: The same of runs of several.
        forwards: Forwards that were measured.
        fed: What was fed that is not the user's own, in a sentence; empty where nothing was.
        sub_sample: How the numbers were estimated, and from which tokens.
    """

    model: str
    described: Sequence[Block]
    noise_levels: list[float | None] = field(default_factory=list)
    cka: list[Grid] = field(default_factory=list)
    cosine: list[Grid] = field(default_factory=list)
    centered_cosine: list[Grid] = field(default_factory=list)
    gap: list[Grid] = field(default_factory=list)
    probe: list[list[float]] = field(default_factory=list)
    chance: float | None = None
    samples: int = 0
    skip: list[float | None] = field(default_factory=list)
    skip_runs: list[SkippedRun] = field(default_factory=list)
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
        """Return what the sums of each noise level say."""
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
        """Return the mean over noise levels of what was measured of two blocks; None where nothing was.

        Args:
            name: ``cka``, ``cosine``, ``centered_cosine`` or ``gap``.
            student: Number of the one block, from 0.
            teacher: Number of the other.
        """
        values = [value for grid in getattr(self, name) if (value := grid[student][teacher]) is not None]
        return sum(values) / len(values) if values else None


def plain(grid: Tensor) -> Grid:
    """Return a grid as lists, None for NaN."""
    return [[None if value != value else round(value, 6) for value in row] for row in grid.tolist()]
