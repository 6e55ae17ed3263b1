"""The measurements as text for a terminal."""

from __future__ import annotations

from typing import Any

from layersync_core.protocol import Block
from layersync_core.suggest.figures import Figures

_FEW = 8  # forwards


def lines_of(found: Figures, content: dict[str, Any]) -> list[str]:
    """Return the recommended pairs with their reasons, and the verdict."""
    levels = ", ".join("unknown" if level is None else f"{level:g}" for level in found.noise_levels)
    of = f"{found.forwards} forward{'s' * (found.forwards != 1)}, noise levels {levels}" if found.forwards else "config"
    lines = [f"{found.model}: {len(found.described)} blocks, {of}"]
    lines += [found.fed] if found.fed else []
    if 0 < found.forwards < _FEW:
        lines.append(f"from only {found.forwards} forward{'s' * (found.forwards != 1)}; more may change the result")
    for pair in content["recommended"]:
        lines.append(f"student {_named(found, pair['student'])}, teacher {_named(found, pair['teacher'])}")
        lines.append(f"    {pair['reason']}")
        lines.append(f"    {_when(pair['stop'])}")
    if not content["recommended"]:
        lines.append("recommended: none")
    lines.append(f"does it favour LayerSync? {content['verdict']['answer']}: {content['verdict']['reason']}")
    return lines


def level_name(level: float | None) -> str:
    """Return the name of a noise level."""
    return "noise level unknown" if level is None else f"noise level {level:g}"


def _when(stop: float | None) -> str:
    if stop is None:
        return "when to stop was not measured"
    if stop == 1:
        return "no need to stop: the model does not use the blocks between"
    return (
        f"stop after {stop:.0%} of the training, by rule of thumb (set layersync_cutoff_step to that share of your "
        "steps): the model uses the blocks between, which the term goes on taking"
    )


def _named(found: Figures, number: int) -> Block:
    return found.described[number - 1]
