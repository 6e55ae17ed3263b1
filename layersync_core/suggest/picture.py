"""The heat map as a PNG, drawn without a display; needs matplotlib."""

from __future__ import annotations

from itertools import pairwise
from typing import IO, Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from layersync_core.protocol import Block
from layersync_core.suggest.figures import Figures, Grid
from layersync_core.suggest.page import MEASURES
from layersync_core.suggest.text import level_name
from layersync_core.suggest.verdict import allowed_places, recommended_places

_DPI = 130
_NAMED = 24  # the most blocks that can all be named beside a panel


def draw(found: Figures, content: dict[str, Any], file: IO[bytes]) -> None:
    """Draw one panel per measure and noise level: students down, teachers across."""
    names = [name for name in MEASURES if getattr(found, name)]
    columns = len(found.noise_levels)
    frames = [(*pair, "white", 0.5) for pair in allowed_places(found.described)]
    frames += [(*pair, "#ff7f0e", 1.8) for pair in recommended_places(content)]
    size = min(max(0.16 * len(found.described), 2.6), 6.5)
    figure = Figure(figsize=(2.2 + columns * (size + 0.7), 1.6 + len(names) * (size + 0.5)), layout="constrained")
    panels: Any = figure.subplots(len(names), columns, squeeze=False)
    for row, name in enumerate(names):
        grids = getattr(found, name)
        values = [value for grid in grids for line in grid for value in line if value is not None]
        low, high = min(values, default=0), max(values, default=1)
        for column, (level, grid) in enumerate(zip(found.noise_levels, grids, strict=True)):
            axes = panels[row, column]
            shown = axes.imshow(_numbers(grid), cmap="viridis", vmin=low, vmax=high)
            axes.set_title(f"{MEASURES[name]}, {level_name(level)}", fontsize="small")
            for frame in frames:
                _frame(axes, *frame)
            _name_blocks(axes, found.described, left=column == 0, below=row == len(names) - 1)
        figure.colorbar(shown, ax=panels[row, :], shrink=0.7)
    figure.suptitle(
        f"{found.model}: student down, teacher across\nwhite frames: where the paper's rules allow a pair; orange: "
        f"recommended; empty: no pair",
        fontsize="medium",
    )
    figure.savefig(file, dpi=_DPI)


def _numbers(grid: Grid) -> list[list[float]]:
    return [[float("nan") if value is None else value for value in row] for row in grid]


def _frame(axes: Any, row: int, column: int, colour: str, width: float) -> None:
    axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=width))


def _name_blocks(axes: Any, blocks: Any, left: bool, below: bool) -> None:
    """Name blocks along both axes; if there are many, a readable number, and the first of each list and stage."""
    step = -(-len(blocks) // _NAMED)
    kept = [block for block in blocks if block.index % step == 0]
    places = [block.index for block in kept]
    axes.set_xticks(places, [_name(block) for block in kept] if below else [], rotation=90, fontsize=6)
    axes.set_yticks(places, [_name(block) for block in kept] if left else [], fontsize=6)
    for before, block in pairwise(blocks):
        if (before.stack, before.stage) != (block.stack, block.stage):
            axes.axhline(block.index - 0.5, color="black", linewidth=0.8)
            axes.axvline(block.index - 0.5, color="black", linewidth=0.8)


def _name(block: Block) -> str:
    return f"{block.index + 1} {block.path}"
