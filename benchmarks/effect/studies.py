"""The studies that the command runs: of the effect, of the model's depth, of what can be foretold, and one again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.effect import depth_report, gpu_report, report, settings_report
from benchmarks.effect.arms import (
    DEEP,
    DEEP_QUICK,
    FULL,
    GPU,
    GPU_QUICK,
    QUICK,
    SETTING,
    SETTING_QUICK,
    Job,
    Scale,
    deep_plan,
    gpu_plan,
    plan,
    repetition_plan,
    settings_plan,
)
from benchmarks.effect.results import Results


@dataclass(frozen=True)
class Study:
    """Trainings that are reported together.

    Attributes:
        folder: Where its results are, below the output folder.
        full: How much is trained and measured.
        quick: The same for ``--quick``.
        plan: Returns every training of a scale, the most important ones first.
        write_report: Writes tables and figures into the study's folder.
        before: Returns what is printed once vanilla is trained, before any other arm is; None if there is nothing.
    """

    folder: str
    full: Scale
    quick: Scale
    plan: Callable[[Scale], list[Job]]
    write_report: Callable[[Path, Results], None]
    before: Callable[[Results], list[str]] | None = None

    def results(self, folder: Path, quick: bool = False) -> Results:
        """Return what is already there of it.

        Args:
            folder: The output folder, with those of all studies.
            quick: Whether it is a quick run.
        """
        return Results(folder / self.folder, self.quick if quick else self.full, self.plan)


STUDIES: dict[str, Study] = {
    "effect": Study(".", FULL, QUICK, plan, report.write_report),
    "depth": Study("depth", DEEP, DEEP_QUICK, deep_plan, depth_report.write_report),
    "settings": Study(
        "settings", SETTING, SETTING_QUICK, settings_plan, settings_report.write_report, settings_report.predictions
    ),
    "repetition": Study("repetition", SETTING, SETTING_QUICK, repetition_plan, settings_report.write_repetition),
}
GPU_STUDY = Study("gpu", GPU, GPU_QUICK, gpu_plan, gpu_report.write_report)
"""Not among the others, which a laptop can train."""
