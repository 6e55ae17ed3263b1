"""An adapter made from what discovery found, and its file. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from layersync_core.capture.discovery.found import Discovery
from layersync_core.errors import ConfigError
from layersync_core.families.adapter import BlockStackAdapter
from layersync_core.families.registry import get_adapter
from layersync_core.files import read_json, replace_file
from layersync_core.protocol import Adapter

AUTO = "auto"
"""The family of a model that is discovered."""


def adapter_of(found: Discovery, family: str = AUTO) -> BlockStackAdapter:
    """Return the adapter that describes what discovery found.

    Raises:
        ConfigError: A question is open; the message lists the candidates.
    """
    found.require_answers()
    return BlockStackAdapter(family=family, **found.layout_fields())


def save_adapter(found: Discovery, path: str | Path) -> None:
    """Write what was found as an adapter file, JSON, which ``family`` accepts.

    Raises:
        ConfigError: A question is open, or the file cannot be written.
    """
    text = json.dumps(found.as_data(), indent=2) + "\n"
    try:
        replace_file(place_of(path), text)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None


def place_of(path: str | Path) -> Path:
    """Return where an adapter file is to be written.

    Raises:
        ConfigError: The name could not be given as a family, or the folder does not exist.
    """
    place = Path(path)
    if not is_adapter_file(place.name) or place.stem.startswith("."):
        raise ConfigError(f"{str(path)!r} isn't a name for an adapter file; it must end in .json, such as mine.json")
    if not place.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {place.parent} to write {place.name} into; create it")
    return place


def read_adapter(path: str | Path) -> BlockStackAdapter:
    """Return the adapter of a file.

    Raises:
        ConfigError: It cannot be read, or isn't an adapter file.
    """
    return adapter_of(Discovery.from_data(read_json(path), str(path)), Path(path).stem)


def adapter_named(family: str) -> Adapter:
    """Return the adapter for a family's id or an adapter file.

    Raises:
        LayerSyncError: There is none, or it cannot be used.
    """
    if not is_adapter_file(family):
        return get_adapter(family)
    adapter: Any = read_adapter(family)
    return adapter  # type: ignore[no-any-return]


def is_adapter_file(family: str) -> bool:
    """Return whether a family is given as an adapter file."""
    return family.lower().endswith(".json")
