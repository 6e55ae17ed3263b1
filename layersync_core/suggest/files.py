"""The three files of a measurement: numbers, a page and a picture."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from layersync_core.errors import ConfigError
from layersync_core.files import replace_file
from layersync_core.suggest.figures import Figures
from layersync_core.suggest.page import page_of

JSON, PAGE, PICTURE = "suggest.json", "suggest.html", "suggest.png"


def write(found: Figures, content: dict[str, Any], folder: Path) -> list[str]:
    """Write the files, and return lines about them.

    Raises:
        ConfigError: They cannot be written.
    """
    make_folder(folder)
    drawn = _drawing(found, content) if found.cka else None
    try:
        replace_file(folder / JSON, f"{json.dumps(content, indent=1)}\n", mode=0o666)
        replace_file(folder / PAGE, page_of(found, content), mode=0o666)
        if drawn is not None:
            replace_file(folder / PICTURE, drawn, mode=0o666)
        else:
            (folder / PICTURE).unlink(missing_ok=True)  # from an earlier measurement
    except OSError as error:
        raise ConfigError(f"folder {folder} cannot be written: {error.strerror or error}") from None
    missing = "" if drawn is not None or not found.cka else f"; {PICTURE} needs matplotlib: pip install matplotlib"
    return [f"{', '.join((JSON, PAGE, *([] if drawn is None else [PICTURE])))} in {folder}{missing}"]


def _drawing(found: Figures, content: dict[str, Any]) -> bytes | None:
    try:
        from layersync_core.suggest.picture import draw
    except ImportError:
        return None
    drawing = BytesIO()
    draw(found, content, drawing)
    return drawing.getvalue()


def make_folder(folder: Path) -> None:
    """Create the folder of a measurement.

    Raises:
        ConfigError: It cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"folder {folder} cannot be made: {error.strerror or error}") from None
