"""What a run says of itself in its ``run.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from layersync_plugin_webui.language import gettext as _
from layersync_plugin_webui.runs.files import read_part
from layersync_plugin_webui.runs.finding import SETTINGS

_LARGEST = 1024 * 1024


def settings(folder: Path) -> dict[str, Any]:
    """Return the content of a run's ``run.json``; empty where there is none that can be read."""
    try:
        data, about = read_part(folder / SETTINGS, 0, _LARGEST)
        content = json.loads(data) if about.st_size <= _LARGEST else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def facts(folder: Path) -> list[tuple[str, str]]:
    """Return what there is to say of a run, as labels and texts."""
    run = settings(folder)
    model, config, data = (_part(run, key) for key in ("model", "config", "data"))
    blocks = run.get("blocks")
    pairs = [pair for pair in blocks if isinstance(pair, dict)] if isinstance(blocks, list) else []
    rows: list[tuple[str, Any]] = [
        (_("Family"), run.get("family")),
        (_("Model"), model.get("class")),
        (_("Arm"), run.get("arm")),
        *((_("LayerSync Student Block"), pair.get("student")) for pair in pairs[:4]),
        *((_("LayerSync Teacher Block"), pair.get("teacher")) for pair in pairs[:4]),
        (_("LayerSync Weight"), config.get("layersync_lambda")),
        (_("Data"), data.get("name")),
        (_("Steps"), run.get("steps")),
        (_("Seed"), run.get("seed")),
        (_("Device"), run.get("device")),
    ]
    return [(label, str(value)[:500]) for label, value in rows if value is not None]


def _part(content: dict[str, Any], key: str) -> dict[str, Any]:
    part = content.get(key)
    return part if isinstance(part, dict) else {}
