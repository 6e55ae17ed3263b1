"""The three files of a measurement: numbers, a page and a picture."""

from __future__ import annotations

import json
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from layersync_core.errors import ConfigError
from layersync_core.files import replace_file
from layersync_core.suggest.figures import Figures
from layersync_core.suggest.page import page_of

JSON, PAGE, PICTURE = "suggest.json", "suggest.html", "suggest.png"


def write(found: Figures, content: dict[str, Any], folder: Path) -> list[str]:
    """Write the files, and return what is to be said of them.

    Raises:
        ConfigError: They cannot be written.
    """
    make_folder(folder)
    try:
        replace_file(folder / JSON, f"{json.dumps(content, indent=1)}\n")
        replace_file(folder / PAGE, page_of(found, content))
        drawn = bool(found.cka) and find_spec("matplotlib") is not None
        if drawn:
            from layersync_core.suggest.picture import draw

            drawing = BytesIO()
            draw(found, content, drawing)
            replace_file(folder / PICTURE, drawing.getvalue())
        else:
            (folder / PICTURE).unlink(missing_ok=True)  # of another measurement
    except OSError as error:
        raise ConfigError(f"folder {folder} cannot be written: {error.strerror or error}") from None
    missing = "" if drawn or not found.cka else f"; {PICTURE} needs matplotlib: pip install matplotlib"
    return [f"{', '.join((JSON, PAGE, *([PICTURE] if drawn else [])))} in {folder}{missing}"]


def make_folder(folder: Path) -> None:
    """Make the folder of a measurement.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"folder {folder} cannot be made: {error.strerror or error}") from None
