"""A package from templates, written completely or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from string import Template

from layersync_core.errors import ConfigError

FILL_IN = "# FILL IN:"
"""Marks the lines whose content could not be found."""

_TEMPLATES = Path(__file__).parent / "templates"


def render(kind: str, name: str, values: Mapping[str, str]) -> str:
    """Return the text of a template.

    Args:
        kind: Folder of the template.
        name: Name of its file without the ending.
        values: Values for each ``$key``; every key of the template must be present.
    """
    return Template((_TEMPLATES / kind / f"{name}.tmpl").read_text(encoding="utf-8")).substitute(values)


def check_folder(folder: Path) -> None:
    """Refuse a folder that already exists.

    Raises:
        ConfigError: The folder exists.
    """
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} exists already; name another folder with --output, or remove it first")


def write_folder(folder: Path, files: Mapping[str, str]) -> None:
    """Write a new folder; if that fails, nothing is left behind.

    Args:
        folder: The folder; its parents are created.
        files: ``path inside the folder -> text``.

    Raises:
        ConfigError: The folder exists, or cannot be written.
    """
    check_folder(folder)
    # Next to the folder, so that the last step is a rename and not a copy.
    unfinished = folder.parent / f".{folder.name}.{os.getpid()}"
    try:
        for name, text in files.items():
            path = unfinished / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        unfinished.rename(folder)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from None
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
