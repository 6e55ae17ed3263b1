"""What a run's ``run.json`` says about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from layersync_core import facts_of
from layersync_plugin_webui.language import gettext
from layersync_plugin_webui.runs.files import read_part
from layersync_plugin_webui.runs.finding import SETTINGS

_LARGEST = 1024 * 1024


def settings(folder: Path) -> dict[str, Any]:
    """Return the content of a run's ``run.json``; empty if there is no readable one."""
    return read_object(folder / SETTINGS)


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is no readable one."""
    try:
        data, about = read_part(path, 0, _LARGEST)
        content = json.loads(data) if about.st_size <= _LARGEST else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def facts(folder: Path) -> list[tuple[str, str]]:
    """Return the facts about a run, as labels and texts."""
    return facts_of(settings(folder), gettext)
