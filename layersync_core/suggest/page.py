"""A page with all measurements in one file: no scripts, no styles and nothing loaded from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from layersync_core.markup import document, escape, svg, svg_text
from layersync_core.protocol import Block
from layersync_core.suggest.figures import Figures, Grid
from layersync_core.suggest.text import level_name, lines_of
from layersync_core.suggest.verdict import allowed_places, recommended_places

MEASURES = {
    "cka": "Linear CKA",
    "centered_cosine": "Centred cosine",
    "cosine": "Cosine",
    "gap": "Linear probe, teacher minus student",
}
"""The measures that are shown, and their titles."""
_CELL, _LABELS = 14, 190


def colour(value: float, low: float, high: float) -> str:
    """Return a colour that gets darker with a value, as #rrggbb; readable for the colour-blind."""
    share = min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 0.0
    stops = ((255, 255, 229), (65, 182, 196), (8, 29, 88))
    at = share * (len(stops) - 1)
    place = min(int(at), len(stops) - 2)
    mixed = (one + (other - one) * (at - place) for one, other in zip(stops[place], stops[place + 1], strict=True))
    return "#" + "".join(f"{round(part):02x}" for part in mixed)


def page_of(found: Figures, content: dict[str, Any]) -> str:
    """Return the page."""
    told = "\n".join(f"<p>{escape(line.strip())}</p>" for line in lines_of(found, content))
    body = [f"<h1>LayerSync: which pair, measured on {escape(found.model)}</h1>", told]
    names = [name for name in MEASURES if getattr(found, name)]
    frames = [_frame(*pair, "#888888", 0.6) for pair in allowed_places(found.described)]
    frames += [_frame(*pair, "#d55e00", 2.0) for pair in recommended_places(content)]
    for number, level in enumerate(found.noise_levels):
        body.append(f"<h2>{level_name(level).capitalize()}</h2>")
        for name in names:
            body.append(f"<h3>{MEASURES[name]}</h3>")
            body.append(heat_map(found.described, getattr(found, name)[number], frames))
    body += [_table("Linear probe of each block", found, [*zip(*found.probe, strict=True)])] if found.probe else []
    body += [_table("Rise of the loss without a block", found, [[value] for value in found.skip])] if found.skip else []
    if found.skip_runs:
        rows = "".join(
            f"<tr><td>{run.first} to {run.last}</td><td>{run.rise:+.4g}</td></tr>" for run in found.skip_runs
        )
        body.append(f"<h2>Rise of the loss without a run of blocks</h2><table border='1'>{rows}</table>")
    how = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in found.sub_sample.items())
    body.append(f"<h2>How it was measured</h2><dl>{how}</dl>")
    return document("layersync suggest", "\n".join(body))


def heat_map(blocks: Sequence[Block], grid: Grid, frames: Sequence[str]) -> str:
    """Return a heat map as SVG, students down and teachers across, with frames around some pairs."""
    values = [value for row in grid for value in row if value is not None]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    size = len(blocks) * _CELL
    shapes = []
    for block, row in zip(blocks, grid, strict=True):
        y = _LABELS + block.index * _CELL
        shapes.append(svg_text(_LABELS - 4, y + _CELL - 4, f"{block.index + 1} {block.path}", "end"))
        turned = f' transform="rotate(-90 {y + _CELL - 4} {_LABELS - 4})"'
        shapes.append(svg_text(y + _CELL - 4, _LABELS - 4, f"{block.index + 1} {block.path}", "start", turned))
        for other, value in enumerate(row):
            if value is not None:
                x, fill = _LABELS + other * _CELL, colour(value, low, high)
                shapes.append(f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{fill}"/>')
    legend = (
        f"from {low:.3g} (light) to {high:.3g} (dark); white: no pair; grey frames: where the paper's rules allow a "
        "pair; orange: recommended"
    )
    side = _LABELS + size + 10
    ground = f'<rect width="{side}" height="{side}" fill="#ffffff"/>'
    told = svg_text(4, 14, "student: down, teacher: across")
    return f"{svg(side, side, 'heat map', ''.join((ground, told, *shapes, *frames)))}\n<p>{legend}</p>"


def _frame(row: int, column: int, colour: str, width: float) -> str:
    x, y = _LABELS + column * _CELL, _LABELS + row * _CELL
    return (
        f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
    )


def _table(title: str, found: Figures, rows: list[Any]) -> str:
    cells = "".join(
        f"<tr><td>{block.index + 1}</td><td>{escape(block.path)}</td>"
        + "".join(f"<td>{'' if value is None else f'{value:.4g}'}</td>" for value in row)
        + "</tr>"
        for block, row in zip(found.described, rows, strict=True)
    )
    return f"<h2>{title}</h2><table border='1'>{cells}</table>"
