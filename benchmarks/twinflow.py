"""TwinFlow's samples in few steps on digits: `python -m benchmarks.twinflow [--quick] [--output_dir DIR]`.

Trains the reference trainer's small DiT by flow matching, with TwinFlow, and with TwinFlow and LayerSync, from the same
weights, on the same samples, noise and times, at three seeds; and measures the Fréchet distance of samples in 1, 2 and
4 steps to the training data, in the features of the small classifier from `benchmarks.effect`. Writes results.json and
table.md after every training; started again on the same folder, it trains what is missing. `--quick` trains one seed
for a few steps: it shows that the machinery works and says nothing about TwinFlow.
"""

# Shapes: B batch

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.effect.measures import Judge
from layersync_plugin_trainer import data, digits_dit
from layersync_plugin_trainer.data import generator
from layersync_plugin_trainer.feeding import Feed
from layersync_plugin_trainer.train import train
from layersync_plugin_twinflow import few_steps, load_twinflow

SEEDS = (0, 1, 2)
COUNTS = (1, 2, 4)
LONG = 40
"""Steps of the plain arm's reference."""
SAMPLES = 512
GUIDANCE = 1.5
"""The guidance contained in TwinFlow's target at its enhanced ratio of 0.5."""

ARMS: dict[str, dict[str, Any]] = {
    "plain": {"layersync_enabled": False},
    "TwinFlow": {"layersync_enabled": False, "twinflow_enabled": True},
    "TwinFlow and LayerSync": {"twinflow_enabled": True},  # with the trainer's default pair
}
Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
Distances = dict[str, float]
"""`sampler, steps` -> Fréchet distance."""


def measure(arm: str, folder: Path, judge: Judge, count: int) -> Distances:
    """Return the distances of an exported model's samples."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel.from_pretrained(folder / "model").eval()
    feed = Feed(digits_dit, model)
    noise = torch.randn((count, *feed.layout.shape), generator=generator(0, "samples of the benchmark"))
    labels = torch.arange(count) % digits_dit.CLASSES

    def plain(x: Tensor, time: Tensor, target: Tensor) -> Tensor:
        return feed(model, x, time, labels)

    def guided(x: Tensor, time: Tensor, target: Tensor) -> Tensor:
        free = feed(model, x, time, torch.full_like(labels, digits_dit.CLASSES))
        return free + GUIDANCE * (plain(x, time, target) - free)

    def distances(name: str, velocity: Velocity, sampler: Any, counts: Sequence[int]) -> Distances:
        return {f"{name}, {steps}": judge.distance(few_steps(velocity, noise, steps, sampler)) for steps in counts}

    if arm == "plain":
        return {
            **distances("Euler", plain, "mul", (*COUNTS, LONG)),
            **distances("Euler with guidance", guided, "mul", COUNTS),
        }
    time = load_twinflow(model, folder / "model")

    def told(x: Tensor, t: Tensor, target: Tensor) -> Tensor:
        with time.told(t, target):
            return plain(x, t, target)

    return {
        key: value
        for sampler in ("few", "mul", "any")
        for key, value in distances(sampler, told, sampler, COUNTS).items()
    }


def run(arm: str, seed: int, steps: int, batch: int, count: int, judge: Judge) -> Distances:
    """Train one arm at one seed, and measure it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "run")
        train(
            {
                "output_dir": str(folder),
                "seed": seed,
                "max_train_steps": steps,
                "train_batch_size": batch,
                "checkpointing_steps": steps,
                "num_sampling_steps": 1,
                "report_to": "none",
                **ARMS[arm],
            }
        )
        return measure(arm, folder, judge, count)


def table(results: dict[str, dict[str, Distances]]) -> str:
    """Return the means over the seeds, and the seeds' own values, as Markdown."""
    heads = [f"{steps} step{'s' if steps > 1 else ''}" for steps in (*COUNTS, LONG)]
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " --- |" * len(heads)]
    for arm, by_seed in results.items():
        names = dict.fromkeys(key.rpartition(", ")[0] for found in by_seed.values() for key in found)
        for name in names:
            cells = []
            for steps in (*COUNTS, LONG):
                values = [found[f"{name}, {steps}"] for found in by_seed.values() if f"{name}, {steps}" in found]
                each = ", ".join(f"{value:.0f}" for value in values)
                cells.append(f"{statistics.mean(values):.0f} ({each})" if values else "")
            lines.append(f"| {arm}, {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.twinflow", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps of one seed; the figures mean nothing")
    parser.add_argument("--output_dir", default="./twinflow-output", help="folder for everything written")
    parser.add_argument("--steps", type=int, default=200, help="optimiser steps of each training")
    parser.add_argument("--batch_size", type=int, default=32, help="samples per step")
    options = parser.parse_args()
    steps, batch, count = (2, 8, 64) if options.quick else (options.steps, options.batch_size, SAMPLES)
    seeds = SEEDS[:1] if options.quick else SEEDS
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    scale = {"steps": steps, "batch size": batch, "samples": count}
    known: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"scale": scale, "arms": {}}
    if known["scale"] != scale:
        parser.error(f"{file} has trainings with {known['scale']}, not {scale}; give another --output_dir")
    judge = Judge(data.load("image", (1, 8, 8)))
    known["held-out data"] = judge.distance_of_real
    for seed in seeds:
        for arm in ARMS:
            found = known["arms"].setdefault(arm, {})
            if str(seed) not in found:
                found[str(seed)] = run(arm, seed, steps, batch, count, judge)
                file.write_text(json.dumps(known, indent=1))
                (folder / "table.md").write_text(table(known["arms"]))
    print(table(known["arms"]), end="")
    print(f"held-out data: {judge.distance_of_real:.0f}")


if __name__ == "__main__":
    main()
