"""Figures, drawn without a display: samples next to real data, and curves over steps."""

# Shapes: B batch, C channels, T frames, H height, W width, L audio positions

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

COLOURS = {"layersync": "#0072B2", "vanilla": "#D55E00"}  # distinguishable for colour-blind readers
AXES = {
    "layersync_loss": "layersync_loss\n(−weight · similarity)",
    "layersync_similarity": "layersync_similarity\n(mean cosine)",
}
DPI = 130


def draw_samples(file: Path, modality: str, panels: Mapping[str, Tensor], labels: Tensor, title: str) -> None:
    """Draw one panel for each set of samples.

    Args:
        file: PNG to write.
        modality: image, video or audio.
        panels: Title of each panel and its samples, (B, C, H, W), (B, C, T, H, W) or (B, C, L), in [-1, 1].
        labels: (B,) classes, the same for every panel.
        title: The figure's title.
    """
    if modality == "image":
        figure = _images(panels, labels)
    elif modality == "video":
        figure = _clips(panels, labels)
    else:
        figure = _waves(panels, labels)
    figure.suptitle(title)
    figure.savefig(file, dpi=DPI, format="png")


def draw_curves(file: Path, arms: Mapping[str, Sequence[Mapping[str, float]]], title: str, objective: str) -> None:
    """Draw every logged metric over optimiser steps, one panel per metric and one line per arm.

    Args:
        file: PNG to write.
        arms: Name of each arm and its logged metrics, each with its ``step``.
        title: The figure's title.
        objective: Name of the main loss.
    """
    labels = AXES | {"loss": f"loss\n({objective})"}
    names = list(dict.fromkeys(key for rows in arms.values() for row in rows for key in row if key != "step"))
    figure = Figure(figsize=(8, 1.2 + 2.1 * max(1, len(names))), layout="constrained")
    panels: Any = figure.subplots(max(1, len(names)), 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=False):
        for arm, rows in arms.items():
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                marker = "o" if len(points) < 3 else None
                axes.plot(*zip(*points, strict=True), label=arm, color=COLOURS.get(arm), linewidth=1.6, marker=marker)
        axes.set_ylabel(labels.get(name, name))
        axes.grid(alpha=0.3)
        if len(arms) > 1:
            axes.legend(frameon=False)
    panels[-1].set_xlabel("optimiser step")
    figure.suptitle(title)
    figure.savefig(file, dpi=DPI, format="png")


def _grey(value: Tensor) -> Any:
    # Models with several channels get the same picture in each.
    return value.float().mean(dim=0).clamp(-1, 1).numpy()


def _images(panels: Mapping[str, Tensor], labels: Tensor) -> Figure:
    columns = len(labels.unique())
    rows = -(-len(labels) // columns)
    figure = Figure(figsize=(max(6.0, 0.5 * columns * len(panels) + 1), 0.5 * rows + 1.2), layout="constrained")
    grid: Any = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, samples) in zip(grid, panels.items(), strict=True):
        # One image with all samples, since laying out a subplot for each would take seconds.
        height, width = (size + 1 for size in samples.shape[-2:])
        mosaic = torch.full((rows * height - 1, columns * width - 1), torch.nan)
        for place, image in enumerate(samples):
            top, left = place // columns * height, place % columns * width
            mosaic[top : top + height - 1, left : left + width - 1] = torch.from_numpy(_grey(image))
        axes.imshow(mosaic.numpy(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(
            [column * width + (width - 2) / 2 for column in range(columns)],
            [str(int(label)) for label in labels[:columns]],
        )
        axes.set_yticks([])
        axes.set_xlabel("class")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def _clips(panels: Mapping[str, Tensor], labels: Tensor) -> Figure:
    frames = next(iter(panels.values())).shape[2]
    shown = torch.linspace(0, frames - 1, min(frames, 8)).round().int().tolist()
    rows = len(labels)
    figure = Figure(figsize=(max(6.0, 0.8 * len(shown) * len(panels) + 1), 0.8 * rows + 1.3), layout="constrained")
    for part, (title, clips) in zip(figure.subfigures(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        part.suptitle(title, fontsize="medium")
        grid: Any = part.subplots(rows, len(shown), squeeze=False)
        for row in range(rows):
            for column, frame in enumerate(shown):
                axes = grid[row, column]
                axes.imshow(_grey(clips[row, :, frame]), cmap="gray", vmin=-1, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
                if row == 0:
                    axes.set_title(f"frame {frame + 1}", fontsize="small", color="0.35")
                if column == 0:
                    axes.set_ylabel(f"class {int(labels[row])}", fontsize="small", color="0.35")
    return figure


def _waves(panels: Mapping[str, Tensor], labels: Tensor) -> Figure:
    rows = len(labels)
    figure = Figure(figsize=(9, 0.9 * rows + 1.5), layout="constrained")
    grid: Any = figure.subplots(rows, len(panels), sharex=True, sharey=True, squeeze=False)
    for column, (title, waves) in enumerate(panels.items()):
        grid[0, column].set_title(title, fontsize="medium")
        for row in range(rows):
            axes = grid[row, column]
            for channel in waves[row, :3]:
                axes.plot(channel.numpy(), linewidth=1)
            axes.set_ylim(-1.5, 1.5)
            axes.grid(alpha=0.3)
            if column == 0:
                axes.set_ylabel(f"pitch {int(labels[row])}", fontsize="small")
        grid[-1, column].set_xlabel("position (first channels)")
    return figure
