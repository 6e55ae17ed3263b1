"""The table of the run for a GPU: the arms side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.effect.arms import ARMS, PAIR, VANILLA
from benchmarks.effect.results import Results
from benchmarks.effect.tasks import GPU_TASK, ON_GPU
from benchmarks.effect.trained import header, trainings

TABLE = "table.md"


def table(results: Results) -> str:
    """Return a Markdown table with a row for each training."""
    head = [
        "arm",
        "seed",
        "held-out loss",
        "Fréchet distance of samples",
        *(f"probe at noise {time}, mean over blocks" for time in ON_GPU[GPU_TASK].times),
        "CKA of the pair",
        "minutes",
    ]
    lines = header(head)
    for arm in (VANILLA, PAIR):
        for record in trainings(results, GPU_TASK, arm):
            mark, (student, teacher) = record.marks[record.steps], record.pair
            cells = [
                ARMS[arm].title,
                str(record.seed),
                f"{mark.held_out:.4f}",
                f"{mark.frechet:.2f}",
                *(f"{np.mean(mark.probe[str(time)]):.3f}" for time in ON_GPU[GPU_TASK].times),
                f"{mark.cka[student - 1][teacher - 1]:.3f}",
                f"{record.seconds / 60:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write_report(folder: Path, results: Results) -> None:
    """Write table.md."""
    (folder / TABLE).write_text(table(results), encoding="utf-8")
