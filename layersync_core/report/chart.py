"""A chart of one metric as SVG: axes and one line per arm, distinguishable without colours too."""

from __future__ import annotations

import math
from collections.abc import Sequence

from layersync_core.markup import svg, svg_text
from layersync_core.report.contents import Point

WIDTH, HEIGHT = 480, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 8, 34
COLOURS = ("#0072b2", "#d55e00")
"""As in the trainer's own figures; colour-blind readers can tell them apart."""
_DASHES = ("", ' stroke-dasharray="6 3"')
_INK = ' fill="currentColor"'

Place = tuple[float, float]


def chart(label: str, lines: Sequence[Sequence[Point]], steps: str) -> str:
    """Return a chart.

    Args:
        label: Text for readers who cannot see it.
        lines: The points of each arm.
        steps: Label of the step axis.
    """
    known = [(point.step, point.value) for line in lines for point in line if point.value is not None]
    first, last = min((step for step, _ in known), default=0), max((step for step, _ in known), default=1)
    low, high = _padded([value for _, value in known] or [0.0, 1.0])
    across = _Axis(first, last if last > first else first + 1, _LEFT, WIDTH - _RIGHT)
    up = _Axis(low, high, HEIGHT - _BOTTOM, _TOP)
    shapes = []
    for value in _ticks(low, high):
        y = up.at(value)
        shapes.append(_rule(_LEFT, y, WIDTH - _RIGHT, y, 0.15))
        shapes.append(svg_text(_LEFT - 6, y + 3, f"{value:.4g}", "end", _INK))
    for step in _ticks(first, max(last, first + 1), whole=True):
        x = across.at(step)
        shapes.append(_rule(x, HEIGHT - _BOTTOM, x, HEIGHT - _BOTTOM + 4, 0.6))
        shapes.append(svg_text(x, HEIGHT - _BOTTOM + 15, f"{step:.0f}", "middle", _INK))
    shapes.append(_rule(_LEFT, HEIGHT - _BOTTOM, WIDTH - _RIGHT, HEIGHT - _BOTTOM, 0.6))
    shapes.append(_rule(_LEFT, _TOP, _LEFT, HEIGHT - _BOTTOM, 0.6))
    shapes.append(svg_text((WIDTH + _LEFT - _RIGHT) / 2, HEIGHT - 4, steps, "middle", _INK))
    for number, line in enumerate(lines):
        shapes += _line(line, across, up, number % len(COLOURS))
    return svg(WIDTH, HEIGHT, label, "".join(shapes))


def sample(number: int) -> str:
    """Return a short piece of an arm's line, for a legend."""
    return svg(28, 10, "", _drawn([(0, 5), (28, 5)], number))


class _Axis:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        # Divided first, since the difference of two values may overflow.
        self._scale = max(abs(low), abs(high), 1e-300)
        self._low, self._span = low / self._scale, (high / self._scale - low / self._scale) or 1.0
        self._start, self._length = start, end - start

    def at(self, value: float) -> float:
        return round(self._start + (value / self._scale - self._low) / self._span * self._length, 1)


def _line(line: Sequence[Point], across: _Axis, up: _Axis, number: int) -> list[str]:
    """Return a line, interrupted where a value isn't finite; an isolated point is drawn as a dot."""
    shapes: list[str] = []
    piece: list[Place] = []
    for point in [*line, Point(0, None)]:
        if point.value is not None:
            piece.append((across.at(point.step), up.at(point.value)))
            continue
        if len(piece) == 1:
            ((x, y),) = piece
            shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="3" fill="{COLOURS[number]}" class="dot{number}"/>')
        elif piece:
            shapes.append(_drawn(piece, number))
        piece = []
    return shapes


def _drawn(places: Sequence[Place], number: int) -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in places)
    return (
        f'<polyline points="{path}" fill="none" stroke="{COLOURS[number]}" class="line{number}" stroke-width="1.6" '
        f'stroke-linejoin="round"{_DASHES[number]}/>'
    )


def _rule(x1: float, y1: float, x2: float, y2: float, opacity: float) -> str:
    ends = f'x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"'
    return f'<line {ends} stroke="currentColor" stroke-opacity="{opacity:g}"/>'


def _padded(values: Sequence[float]) -> Place:
    low, high = min(values), max(values)
    if low == high:
        room = abs(low) * 0.05 or 1.0
        return (low - room, high + room) if math.isfinite(low - room) and math.isfinite(high + room) else (0.0, high)
    return low, high


def _ticks(low: float, high: float, whole: bool = False, about: int = 5) -> list[float]:
    """Return round numbers between two values, about as many as asked for."""
    span = high - low
    if not math.isfinite(span) or span < 1e-12 * max(abs(low), abs(high), 1e-280):  # no round numbers between them
        return [low, high]
    power = 10.0 ** math.floor(math.log10(span / about))
    distance = next((power * times for times in (1, 2, 5) if span / (power * times) <= about), power * 10)
    distance = max(1.0, round(distance)) if whole else distance
    first = math.ceil(low / distance)
    return [number * distance for number in range(first, math.floor(high / distance) + 1)][: 4 * about]
