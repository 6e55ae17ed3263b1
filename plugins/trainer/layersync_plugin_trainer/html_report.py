"""report.html: a whole run, or a whole comparison, in one file that can be mailed."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from layersync_core import Arm, LayerSyncError, Picture, Report, Series, render_report
from layersync_plugin_trainer.outcome import Outcome
from layersync_plugin_trainer.writing import whole

NAME = "report.html"
PICTURES = ("samples.png", "compare_samples.png", "compare.png")


def write(
    folder: Path,
    outcomes: Sequence[Outcome],
    records: Sequence[Mapping[str, Any]],
    comparison: Mapping[str, Any],
    seconds: float,
) -> None:
    """Write the report at the end of a run; if it cannot be written, print one line that says why and go on.

    Args:
        folder: The run's folder, which has the pictures already.
        outcomes: Each arm's outcome.
        records: The content of each arm's run.json.
        comparison: The content of compare.json; empty without ``--compare``.
        seconds: Seconds since the command began.
    """
    try:
        with whole(folder / NAME) as file:
            file.write_text(render_report(_report(folder, outcomes, records[0], comparison, seconds)), encoding="utf-8")
    except Exception as error:  # training is done; a fault in its report must not turn it into a failure
        with suppress(OSError):
            (folder / NAME).unlink(missing_ok=True)  # an older report would be about the run before it was resumed
        reason = error if isinstance(error, LayerSyncError) else f"{folder / NAME}: {type(error).__name__}: {error}"
        print(f"warning: {' '.join(str(reason).split())}; everything else of the run is there", file=sys.stderr)


def _report(
    folder: Path,
    outcomes: Sequence[Outcome],
    record: Mapping[str, Any],
    comparison: Mapping[str, Any],
    seconds: float,
) -> Report:
    several, pictures = len(outcomes) > 1, [folder / name for name in PICTURES]
    return Report(
        name=folder.resolve().name,
        state="Finished",
        record=record,
        arms=[Arm(outcome.name if several else "", Series.of_rows(outcome.history)) for outcome in outcomes],
        pictures=[Picture(path.name, "image/png", path.read_bytes()) for path in pictures if path.is_file()],
        comparison=comparison,
        began=time.time() - seconds,
        seconds=seconds,
        total_steps=record["config"]["max_train_steps"],
    )
