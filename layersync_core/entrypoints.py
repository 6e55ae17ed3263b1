"""Entry points of other distributions, read without importing them and loaded one by one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import importlib_metadata

PLUGINS = "layersync.plugins"
"""Group of the plugins' entry points."""

KNOWN_PLUGINS = {"crepa": "layersync-plugin-crepa"}
"""Distributions of the regularizers that trainers' configurations enable, by name: without one its keys do nothing."""

LOAD_VARIABLE = "LAYERSYNC_LOAD"
"""Comma-separated names that may be loaded; unset: all, empty: none."""


@dataclass(frozen=True)
class Provider:
    """An entry point and the distribution it comes from."""

    name: str
    value: str
    distribution: str
    version: str
    _entry: importlib_metadata.EntryPoint

    @property
    def allowed(self) -> bool:
        """Whether LAYERSYNC_LOAD lets it load."""
        names = os.environ.get(LOAD_VARIABLE)
        return names is None or self.name in {name.strip() for name in names.split(",")}

    def load(self) -> Any:
        """Import the object; whatever the import raises comes through."""
        return self._entry.load()

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def providers(group: str) -> list[Provider]:
    """Return the entry points of a group by name; a distribution that is found twice on the path counts once."""
    found: dict[tuple[str, str], Provider] = {}
    for distribution in importlib_metadata.distributions():
        for entry in _entries(distribution, group):
            name, version = _field(distribution, "Name"), _field(distribution, "Version")
            key = (entry.name, re.sub(r"[-_.]+", "-", name).lower())
            found.setdefault(key, Provider(entry.name, entry.value, name, version, entry))
    return sorted(found.values(), key=lambda provider: (provider.name, provider.distribution))


def _entries(distribution: Any, group: str) -> Iterable[importlib_metadata.EntryPoint]:
    try:
        return [entry for entry in distribution.entry_points if entry.group == group]
    except Exception:  # a distribution with unreadable metadata is not ours to report
        return []


def _field(distribution: Any, name: str) -> str:
    try:
        return distribution.metadata[name] or "unknown"
    except Exception:  # an interrupted installation leaves entry points without METADATA
        return "unknown"


def describe_failure(error: BaseException) -> str:
    """Return an import failure in one line."""
    text = shorten(str(error), 300, placeholder=" …")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
