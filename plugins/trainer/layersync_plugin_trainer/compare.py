"""The report of ``--compare``: LayerSync against a vanilla arm with the same seed, data order, noise and weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from layersync_plugin_trainer.config import Settings
from layersync_plugin_trainer.figures import COLOURS, DPI, draw_samples
from layersync_plugin_trainer.outcome import Outcome
from layersync_plugin_trainer.report import real_examples
from layersync_plugin_trainer.writing import whole

LAST = 0.1
"""Share of the logged rows over which the table's final values are averaged."""


NOTE = (
    "One run of each arm at one seed: small differences are noise. Held-out loss uses the same noise and times in both "
    "arms."
)


def write_comparison(folder: Path, layersync: Outcome, vanilla: Outcome, settings: Settings) -> dict[str, Any]:
    """Write compare.png (curves and layer similarity), compare_samples.png, report.md and compare.json.

    Returns:
        The content of compare.json: ``arms``, ``rows`` of a name and a text for each arm, and a ``note``.
    """
    arms = [layersync, vanilla]
    with whole(folder / "compare.png") as file:
        _figure(file, arms)
    assert layersync.samples is not None
    assert vanilla.samples is not None
    assert layersync.sample_labels is not None
    panels = {f"real {layersync.data.name}": real_examples(layersync)}
    panels |= {f"samples, {arm.name}": arm.samples for arm in arms if arm.samples is not None}
    title = f"{layersync.model_class} after {settings.trainer.max_train_steps} steps: same seed, noise and classes"
    with whole(folder / "compare_samples.png") as file:
        draw_samples(file, layersync.layout_modality, panels, layersync.sample_labels, title)
    with whole(folder / "report.md") as file:
        file.write_text(_text(layersync, vanilla, settings, rows := _rows(layersync, vanilla)))
    comparison = {"arms": [arm.name for arm in arms], "rows": rows, "note": NOTE}
    with whole(folder / "compare.json") as file:
        file.write_text(json.dumps(comparison, indent=2) + "\n")
    return comparison


def recognised(outcome: Outcome) -> float:
    """Return the share of drawn samples whose three nearest real neighbours agree with the requested class.

    NaN if the model is not conditioned on classes.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if not outcome.conditional or outcome.samples is None or outcome.sample_labels is None:
        return math.nan
    classifier = KNeighborsClassifier(3)
    classifier.fit(outcome.data.samples.flatten(1).numpy(), outcome.data.labels.numpy())
    guesses = torch.from_numpy(classifier.predict(outcome.samples.flatten(1).numpy()))
    return float((guesses == outcome.sample_labels).float().mean())


def _figure(file: Path, arms: list[Outcome]) -> None:
    figure = Figure(figsize=(11, 10), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1, 2.1])
    top, bottom = parts
    curves: Any = top.subplots(1, 2)
    for axes, name, label in (
        (curves[0], "loss", f"loss ({arms[0].objective})"),
        (curves[1], "layersync_similarity", "layersync_similarity (mean cosine)"),
    ):
        for arm in arms:
            points = [(row["step"], row[name]) for row in arm.history if name in row]
            if points:
                marker = "o" if len(points) < 3 else None
                axes.plot(*zip(*points, strict=True), label=arm.name, color=COLOURS[arm.name], marker=marker)
        if name == "layersync_similarity" and arms[0].pairs:
            for arm in arms:
                ends = [_pair(arm, arms[0], "before"), _pair(arm, arms[0], "after")]
                steps = [0, arm.history[-1]["step"]] if arm.history else [0, 0]
                measured = f"{arm.name}, held-out data"
                axes.plot(steps, ends, "o:", label=measured, color=COLOURS[arm.name], markersize=5, linewidth=1)
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    top.suptitle("Training", fontsize="medium")
    bottom.suptitle("Layer similarity: mean cosine of every two blocks, held-out data", fontsize="medium")
    maps: Any = bottom.subplots(2, 2)
    image = None
    for row, arm in enumerate(arms):
        for column, when in enumerate(("before", "after")):
            axes, matrix = maps[row, column], arm.similarity[when]
            image = axes.imshow(matrix.numpy(), vmin=_lowest(arms), vmax=1, cmap="viridis", origin="lower")
            axes.set_title(f"{arm.name}, {when} training", fontsize="small")
            axes.set_xlabel("block")
            axes.set_ylabel("block")
            every = max(1, len(matrix) // 10)
            places = list(range(0, len(matrix), every))
            axes.set_xticks(places, [str(place + 1) for place in places])
            axes.set_yticks(places, [str(place + 1) for place in places])
            for pair in arms[0].pairs:
                axes.plot(pair[1], pair[0], marker="s", markersize=11, fillstyle="none", color="white")
                axes.plot(pair[0], pair[1], marker="s", markersize=11, fillstyle="none", color="white")
    if image is not None:
        bottom.colorbar(image, ax=maps, label="mean cosine (the aligned pair is framed)", shrink=0.8)
    figure.suptitle(f"LayerSync and vanilla: {arms[0].model_class}")
    figure.savefig(file, dpi=DPI, format="png")


def _lowest(arms: list[Outcome]) -> float:
    lowest = min(float(matrix.nan_to_num(1.0).min()) for arm in arms for matrix in arm.similarity.values())
    return min(0.9, math.floor(10 * lowest) / 10)


def _rows(layersync: Outcome, vanilla: Outcome) -> list[list[str]]:
    arms = layersync, vanilla
    return [
        ["training loss, mean of the last tenth", *(_number(_last(arm, "loss")) for arm in arms)],
        ["loss on held-out data", *(_number(arm.held_out) for arm in arms)],
        ["drawn samples recognised as their class", *(_share(arm) for arm in arms)],
        ["similarity of the pair, before", *(_number(_pair(arm, layersync, "before")) for arm in arms)],
        ["similarity of the pair, after", *(_number(_pair(arm, layersync, "after")) for arm in arms)],
        ["mean similarity of all blocks, after", *(_number(_off_diagonal(arm)) for arm in arms)],
        ["time per step", *(_time(arm) for arm in arms)],
    ]


def _text(layersync: Outcome, vanilla: Outcome, settings: Settings, rows: list[list[str]]) -> str:
    config = settings.trainer
    pairs = "; ".join(f"student {pair['student']}, teacher {pair['teacher']}" for pair in layersync.blocks)
    table = "\n".join(f"| {name} | {one} | {other} |" for name, one, other in rows)
    batch = config.batch_size * config.gradient_accumulation_steps * layersync.processes
    return f"""# LayerSync and vanilla

{layersync.model_class} ({layersync.parameters[0]:,} weights) on {len(layersync.data.samples)} {layersync.data.name};
{config.max_train_steps} steps of {batch} samples, seed {config.seed}, on {layersync.device}.
Both arms start from the same weights and see the same samples, noise and times.

LayerSync: {pairs}.

| | layersync | vanilla |
|---|---|---|
{table}

{NOTE}

![Curves and layer similarity](compare.png)

![Samples](compare_samples.png)
"""


def _last(arm: Outcome, name: str) -> float:
    values = [row[name] for row in arm.history if name in row]
    kept = values[-max(1, int(len(values) * LAST)) :]
    return sum(kept) / len(kept) if kept else math.nan


def _pair(arm: Outcome, layersync: Outcome, when: str) -> float:
    student, teacher = layersync.pairs[0]
    return float(arm.similarity[when][student, teacher])


def _off_diagonal(arm: Outcome) -> float:
    matrix: Tensor = arm.similarity["after"]
    return float(matrix[~torch.eye(len(matrix), dtype=torch.bool)].nanmean())


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4f}"


def _share(arm: Outcome) -> str:
    share = recognised(arm)
    count = 0 if arm.sample_labels is None else len(arm.sample_labels)
    return "–" if math.isnan(share) else f"{round(share * count)} of {count}"


def _time(arm: Outcome) -> str:
    return f"{1000 * arm.seconds / arm.steps:.1f} ms" if arm.steps else "–"
