"""Facts about a model before its weights are loaded."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from layersync_core import Block, LayerSyncError, allowed_places, blocks_of, model_of, provider, suggest_pair
from layersync_plugin_webui.training.answering.schema import TRAINER

DEFAULT_FAMILY = "dit"
_FRESH = 60
"""Seconds after which a model is built again, since its files may change."""


@dataclass(frozen=True)
class Known:
    """A model without its weights: its name, its adapter and where its blocks are."""

    title: str
    adapter: Any
    model: Any
    source: Any = None


_last: tuple[float, tuple[str, ...], Known] | None = None


def known(way: str, model: str, family: str) -> Known | None:
    """Return a model by name; None if nothing names one.

    Args:
        way: ``train``, where no name means the trainer's own model, or ``run``.
        model: Folder, config file or hub name; empty for a family's tiny model.
        family: The family, for models whose config does not determine it; empty to read it from the config.

    Raises:
        LayerSyncError: There is no such model, or its family is refused or not installed.
    """
    global _last
    asked = (way, model, family)
    if _last is not None and _last[1] == asked and time.monotonic() - _last[0] < _FRESH:
        return _last[2]
    found = _look(way, model, family)
    _last = None if found is None else (time.monotonic(), asked, found)
    return found


def _look(way: str, model: str, family: str) -> Known | None:
    if way == "train" and not model:
        source = import_module(f"{TRAINER}.models").find_source(None, family or None)
        outline = source.outline()
        return Known(f"{type(outline).__name__} (random weights)", source.adapter, outline, source)
    if not model and not family:
        return None
    named = model_of(model or family, family if model and family else None)
    return Known(named.title, named.adapter, named.model)


def of(way: str, model: str, family: str) -> dict[str, Any]:
    """Return the recognised model, all of its blocks, and the pairs that the paper's rules allow.

    Raises:
        LayerSyncError: As in ``known``.
    """
    found = known(way, model, family)
    if found is None:
        return {}
    blocks = blocks_of(found.adapter, found.model)
    student, teacher = suggest_pair(blocks)
    untrainable = ""
    if way == "train" and model:
        try:
            import_module(f"{TRAINER}.models").find_source(model, family or None)
        except LayerSyncError as error:
            untrainable = str(error)
    return {
        "title": found.title,
        "class": type(found.model).__name__,
        "family": found.adapter.family,
        "provider": str(provider(found.adapter.family) or ""),
        # The trainer's own model isn't a family's tiny model, and has no name that layersync suggest knows.
        "measurable": bool(model) or found.source is None or family not in ("", DEFAULT_FAMILY),
        "blocks": [_plain(block) for block in blocks],
        "suggested": [student.index + 1, teacher.index + 1],
        "allowed": [[one + 1, other + 1] for one, other in allowed_places(blocks)],
        "untrainable": untrainable,
    }


def _plain(block: Block) -> dict[str, Any]:
    return {"number": block.index + 1, "path": block.path, "width": block.width, "stage": block.stage}
