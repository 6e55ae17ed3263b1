"""The files that an arm leaves in its folder: samples.png, curves.png, run.json."""

from __future__ import annotations

import json
import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layersync_core import only_loaded, provider
from layersync_plugin_trainer.config import Settings
from layersync_plugin_trainer.figures import draw_curves, draw_samples
from layersync_plugin_trainer.outcome import Outcome
from layersync_plugin_trainer.writing import whole

PACKAGES = ("layersync-core", "layersync-plugin-trainer", "torch", "diffusers", "accelerate", "peft")


def write_arm(
    folder: Path, outcome: Outcome, settings: Settings, regularizers: dict[str, Any], elapsed: float
) -> dict[str, Any]:
    """Write the figures and run.json, and return the content of run.json.

    Args:
        folder: The arm's output folder.
        outcome: The arm's outcome.
        settings: The run's settings.
        regularizers: The settings of the arm's regularizers.
        elapsed: Seconds since the command began.
    """
    assert outcome.samples is not None  # the first rank has them
    assert outcome.sample_labels is not None
    step = int(outcome.history[-1]["step"]) if outcome.history else 0
    title = f"{outcome.model_class} ({outcome.name}), step {step}"
    real = real_examples(outcome)
    drawn = (
        "samples of the model" if outcome.conditional else "samples of the model, which is not conditioned on the class"
    )
    panels = {f"real {outcome.data.name}": real, drawn: outcome.samples, **outcome.further_samples}
    with whole(folder / "samples.png") as file:
        draw_samples(file, outcome.layout_modality, panels, outcome.sample_labels, title)
    with whole(folder / "curves.png") as file:
        draw_curves(file, {outcome.name: outcome.history}, title, outcome.objective)
    run = run_record(outcome, settings, regularizers, elapsed)
    with whole(folder / "run.json") as file:
        file.write_text(json.dumps(run, indent=2, default=str) + "\n")
    return run


def real_examples(outcome: Outcome) -> Tensor:
    """Return real samples of the classes that were drawn, (B, *shape)."""
    assert outcome.sample_labels is not None
    taken: dict[int, int] = {}
    chosen = []
    for label in outcome.sample_labels.tolist():
        places = (outcome.data.labels == label).nonzero().flatten()
        chosen.append(int(places[taken.get(label, 0) % len(places)]))
        taken[label] = taken.get(label, 0) + 1
    return outcome.data.samples[chosen]


def run_record(outcome: Outcome, settings: Settings, regularizers: dict[str, Any], elapsed: float) -> dict[str, Any]:
    """Return the content of run.json."""
    config = settings.trainer
    adapter = provider(outcome.family)
    metrics = {key: value for key, value in outcome.history[-1].items() if key != "step"} if outcome.history else {}
    return {
        "arm": outcome.name,
        "given": settings.given,
        "config": {
            **config.model_dump(),
            "train_batch_size": config.batch_size,
            "learning_rate": config.peak_rate,
            **regularizers,
        },
        "family": outcome.family,
        "objective": outcome.objective,
        "adapter": {"distribution": adapter.distribution, "version": adapter.version} if adapter else None,
        "model": {
            "class": outcome.model_class,
            "weights": outcome.parameters[0],
            "trained_weights": outcome.parameters[1],
        },
        "blocks": outcome.blocks,
        "data": {"name": outcome.data.name, "samples": len(outcome.data.samples)},
        "seed": config.seed,
        "device": outcome.device,
        "processes": outcome.processes,
        "versions": {"python": platform.python_version(), **versions()},
        "distributions": outcome.distributions,
        # The trainer itself stands among the versions.
        "only_loaded": [name for name in only_loaded(outcome.distributions) if name.split()[0] not in PACKAGES],
        "steps": int(outcome.history[-1]["step"]) if outcome.history else 0,
        "metrics": {**metrics, "held_out_loss": None if math.isnan(outcome.held_out) else outcome.held_out},
        "training_seconds": round(outcome.seconds, 3),
        "seconds_per_step": round(outcome.seconds / outcome.steps, 5) if outcome.steps else None,
        "elapsed_seconds": round(elapsed, 3),
        "threads": torch.get_num_threads(),
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that a run depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
