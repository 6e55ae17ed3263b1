"""``layersync train``: from settings to a finished output folder."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from layersync_core import ConfigError, LayerSyncError, ProcessRecord, overlay
from layersync_plugin_trainer.checkpoint import STATE, Checkpoint, found, is_whole, locate, verify
from layersync_plugin_trainer.claiming import claimed, is_empty
from layersync_plugin_trainer.config import Settings, TrainerConfig
from layersync_plugin_trainer.run_log import Log
from layersync_plugin_trainer.writing import WriteError, quiet_writers

ARMS = ("layersync", "vanilla")
SMALL = 10_000_000
"""Models with fewer weights run on one CPU thread, unless OMP_NUM_THREADS says otherwise."""
MAY_CHANGE = {
    "output_dir", "model", "max_train_steps", "max_grad_norm", "gradient_checkpointing", "report_to", "logging_steps",
    "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint", "num_sampling_steps", "guidance_scale",
}  # fmt: skip
"""Settings that a resumed run may change; the others have shaped the optimiser's state or the past random draws."""


def train(mapping: Mapping[str, Any]) -> None:
    """Train, and write checkpoints, figures, the model, run.json and report.html.

    Args:
        mapping: Settings by name: the trainer's keys beside ``layersync_*`` keys.

    Raises:
        LayerSyncError: A start-up error, before anything was written; or something could not be written.
        SystemExit: 130 or 143 after a signal, with a checkpoint written.
    """
    try:
        _train(mapping)
    except LayerSyncError:
        if int(os.environ.get("RANK", "0")):
            raise SystemExit(2) from None  # one process reports the error for all
        raise


def _train(mapping: Mapping[str, Any]) -> None:
    began = time.perf_counter()
    settings = Settings(mapping)
    resume = _resume_points(settings.trainer)
    notes: list[str] = []
    if resume:
        settings, notes = _continue(settings, resume)
    config = settings.trainer
    folder = Path(config.output_dir)
    if config.resume_from_checkpoint and not resume:
        notes.append(f"no checkpoint in {folder} to resume from: starting at step 0")
    # One process claims the folder and prints for the whole run.
    is_first = not int(os.environ.get("RANK", "0"))
    with (
        claimed(folder) if is_first else nullcontext(),
        ProcessRecord(folder, "train", config.max_train_steps) as record,
        Log(folder) if is_first else nullcontext() as log,
        quiet_writers(),
    ):

        def started() -> None:
            if log is not None:
                record.begin()
                log.begin()

        try:
            _train_in(folder, settings, resume, notes, began, started)
        except WriteError as error:
            raise LayerSyncError(f"{error}; {_what_is_left(folder)}") from error


def _train_in(
    folder: Path,
    settings: Settings,
    resume: Mapping[str, Checkpoint],
    notes: list[str],
    began: float,
    started: Callable[[], None],
) -> None:
    config = settings.trainer
    _check_output(folder, in_place=any(folder in point.folder.parents for point in resume.values()))

    for point in resume.values():
        _check_later(point, folder)

    # From here on torch is needed; everything above answers at once.
    import torch
    from accelerate.state import AcceleratorState, GradientState

    from layersync_plugin_trainer import arm, html_report, models, objective, report

    plan = models.plan(settings)
    outcomes, records, comparison = [], [], {}
    threads = torch.get_num_threads()
    try:
        if plan.weights < SMALL and "OMP_NUM_THREADS" not in os.environ:
            # Such small kernels don't gain from threads, and on busy cores the threads wait for each other: up to ten
            # times slower on two cores.
            torch.set_num_threads(1)
        for name in ARMS if config.compare else ("layersync",):
            place = folder / name if config.compare else folder
            accelerator = arm.make_accelerator(config, place)
            for note in notes:
                accelerator.print(note)
            notes.clear()
            wanted = {"layersync_enabled": False} if name == "vanilla" else plan.regularizers
            main = objective.enabled(plan.scheduled)  # the same for both arms
            outcome = arm.train_arm(
                name,
                settings,
                wanted,
                main,
                plan.source,
                place,
                resume.get(name),
                accelerator,
                _resume_command(folder),
                started,
            )
            outcomes.append(outcome)
            if accelerator.is_main_process:
                records.append(report.write_arm(place, outcome, settings, wanted, time.perf_counter() - began))
            accelerator.free_memory()
        if accelerator.is_main_process:
            if config.compare:
                from layersync_plugin_trainer.compare import write_comparison

                comparison = write_comparison(folder, outcomes[0], outcomes[1], settings)
            html_report.write(folder, outcomes, records, comparison, time.perf_counter() - began)
            accelerator.print(f"wrote {folder}: {', '.join(sorted(path.name for path in _visible(folder)))}")
        accelerator.end_training()
    finally:
        # accelerate keeps its state for the whole process, and the next run in it may want another precision.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        torch.set_num_threads(threads)


def _resume_points(config: TrainerConfig) -> dict[str, Checkpoint]:
    """Return each arm's verified checkpoint; empty when there is nothing to resume."""
    if config.resume_from_checkpoint is None:
        return {}
    folder = Path(config.output_dir)
    if config.resume_from_checkpoint != "latest":
        point = locate(config.resume_from_checkpoint, folder)
        assert point is not None  # only latest may find nothing
        return {"layersync": _no_arm(point)}
    arms = [name for name in ARMS if found(folder / name)]
    if arms and not found(folder):
        points = {name: locate("latest", folder / name) for name in arms}
        return {name: point for name, point in points.items() if point is not None}
    point = locate("latest", folder)
    return {} if point is None else {"layersync": _no_arm(point)}


def newest(folder: Path) -> tuple[int, str] | None:
    """Return the step of the newest complete checkpoint (judged by file sizes) and its name for ``train``."""
    arms = [] if found(folder) else [arm for name in ARMS if (arm := found(folder / name))]
    for candidate in reversed(found(folder)):
        with suppress(ConfigError):
            point = _no_arm(verify(candidate, by_content=False))
            return point.step, "latest" if candidate == found(folder)[-1] else str(candidate)
    try:
        # The arms of a comparison resume from their newest checkpoints only.
        return (min(verify(arm[-1], by_content=False).step for arm in arms), "latest") if arms else None
    except ConfigError:
        return None


def _no_arm(point: Checkpoint) -> Checkpoint:
    if point.settings.get("compare") and _settings_of(point).trainer.compare:
        raise ConfigError(
            f"{point.folder} is one arm of a comparison; resume both arms with --output_dir "
            f"{point.folder.parent.parent} --resume_from_checkpoint latest"
        )
    return point


def _settings_of(point: Checkpoint) -> Settings:
    """Return the settings of the run that wrote a checkpoint."""
    try:
        return Settings({**point.settings, "output_dir": None, "resume_from_checkpoint": None})
    except ConfigError as error:
        raise ConfigError(f"{point.folder} cannot be resumed with the settings in its {STATE}: {error}") from None


def _continue(settings: Settings, resume: Mapping[str, Checkpoint]) -> tuple[Settings, list[str]]:
    """Return a resumed run's settings: those it was started with, updated by those given now that may change."""
    point = next(iter(resume.values()))
    before = _settings_of(point)
    for key in settings.trainer.model_fields_set - MAY_CHANGE:
        was, now = getattr(before.trainer, key), getattr(settings.trainer, key)
        if was != now:
            raise ConfigError(f"{key} was {was!r} in {point.folder} and is {now!r} now; a resumed run keeps it")
    merged = overlay(before.given, settings.given)
    notes = [f"resuming {point.folder} at step {point.step}"]
    if settings.regularizers and overlay(before.regularizers, settings.regularizers) != before.regularizers:
        shown = ", ".join(f"{key} {value}" for key, value in settings.regularizers.items())
        notes.append(f"regularizer settings change from here on: {shown}")
    changed = [key for key in settings.regularizers if key.startswith("layersync_") and key != "layersync_enabled"]
    if changed and not Settings(merged).enabled:
        raise ConfigError(
            f"LayerSync is off in {point.folder}, so {', '.join(changed)} would do nothing; add layersync_enabled: true"
        )
    if "output_dir" not in settings.given:
        place = point.folder.parent
        merged["output_dir"] = str(place.parent if before.trainer.compare else place)
    now_settings = Settings(merged)
    for checkpoint in resume.values():
        if checkpoint.step > now_settings.trainer.max_train_steps:
            raise ConfigError(
                f"{checkpoint.folder} has {checkpoint.step} steps, more than max_train_steps "
                f"{now_settings.trainer.max_train_steps}; raise max_train_steps"
            )
    return now_settings, notes


def _check_output(folder: Path, in_place: bool) -> None:
    if not in_place and folder.is_dir() and not is_empty(folder):
        raise ConfigError(
            f"output_dir {folder} is not empty; give an empty one, or continue its run with "
            "--resume_from_checkpoint latest"
        )


def _check_later(point: Checkpoint, folder: Path) -> None:
    """Refuse to go back if the run would overwrite later checkpoints in the folder."""
    if folder not in point.folder.parents:
        return
    beside = found(point.folder.parent)
    later = (
        [path for path in beside[beside.index(point.folder) + 1 :] if is_whole(path)] if point.folder in beside else []
    )
    if later:
        raise ConfigError(
            f"{point.folder.parent} has later checkpoints, up to {later[-1].name}, which this run would overwrite; "
            "resume latest, or give another output_dir"
        )


def _resume_command(folder: Path) -> str:
    """Return the command that continues a stopped run."""
    return f"layersync train --output_dir {shlex.quote(str(folder))} --resume_from_checkpoint latest"


def _what_is_left(folder: Path) -> str:
    """Return the advice to give after something could not be written."""
    newest = [places[-1].relative_to(folder) for arm in ("", *ARMS) if (places := found(folder / arm))]
    if newest:
        be = "is" if len(newest) == 1 else "are"
        return f"{' and '.join(map(str, newest))} {be} whole: make room, then {_resume_command(folder)}"
    return f"there is no checkpoint to go on from: make room, empty {folder} and start again"


def _visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
