"""Entry points of other distributions, read without importing them and loaded one by one."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import importlib_metadata

from layersync_core.errors import LayerSyncError

log = logging.getLogger(__name__)

PLUGINS = "layersync.plugins"
"""The plugins' entry point group."""

KNOWN_OBJECTIVES = ("twinflow",)
KNOWN_PLUGINS = {"crepa": "layersync-plugin-crepa", "twinflow": "layersync-plugin-twinflow"}
"""Distributions of the plugins that trainers' configurations may enable, by name; without one, its keys do nothing."""

PLUGIN_COMMANDS = {
    **dict.fromkeys(("train", "suggest"), "layersync-plugin-trainer"),
    "webui": "layersync-plugin-webui",
}
"""This project's distributions that bring a command, by the command's name."""


def not_installed(name: str) -> str:
    """Return a clause about a known plugin that is asked for but not installed."""
    where = ", and only layersync train can run it" if name in KNOWN_OBJECTIVES else ""
    return f"its plugin is not installed{where}: pip install {KNOWN_PLUGINS[name]}"


_OURS = frozenset({*KNOWN_PLUGINS.values(), *PLUGIN_COMMANDS.values()})

_SLOW = 5
"""Seconds after which a slow import is reported."""

LOAD_VARIABLE = "LAYERSYNC_LOAD"
"""Variable with the comma-separated names that may be loaded; unset: all, empty: none."""


def loadable() -> set[str] | None:
    """Return the names that LAYERSYNC_LOAD allows; None where it is not set."""
    names = os.environ.get(LOAD_VARIABLE)
    return None if names is None else {name.strip() for name in names.split(",")} - {""}


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
        """Whether LAYERSYNC_LOAD allows it."""
        names = loadable()
        return names is None or self.name in names

    @property
    def title(self) -> str:
        """What messages call it."""
        return f"{self} ({self.name})"

    @property
    def is_ours(self) -> bool:
        """Whether it is one of this project's plugins, which others rely on by name."""
        return normalised(self.distribution) in _OURS

    def load(self) -> Any:
        """Import the object, and log if that takes long; errors of the import propagate, as in ``foreign``."""
        started = time.monotonic()
        try:
            with foreign():
                found = self._entry.load()
            _loaded[self._entry.group, self.name, self.distribution] = self, found
            return found
        finally:
            if (took := time.monotonic() - started) > _SLOW:
                kind = "plugin" if self._entry.group == PLUGINS else "adapter"
                log.warning("%s %s took %.0f s to load; %s leaves it out", kind, self.title, took, LOAD_VARIABLE)

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


_loaded: dict[tuple[str, str, str], tuple[Provider, Any]] = {}


def loaded() -> list[tuple[Provider, Any]]:
    """Return the entry points that this process has imported, and what they were."""
    return [*_loaded.values()]


class EndedError(Exception):
    """Somebody else's code tried to end the program; the cause is the exception it raised."""


@contextmanager
def foreign() -> Iterator[None]:
    """Run somebody else's code so that it prints to standard error and cannot end the program.

    A KeyboardInterrupt propagates, since it may be the user's.

    Raises:
        EndedError: The code raised something other than an Exception, such as SystemExit if it is a script.
    """
    with _file_descriptor_redirected(), redirect_stdout(sys.stderr):
        try:
            yield
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise EndedError from error


@contextmanager
def _file_descriptor_redirected() -> Iterator[None]:
    """Send what processes and C libraries print to standard error too, since a shell may evaluate our output."""
    kept = None
    with suppress(OSError, ValueError, AttributeError):  # standard output is closed or missing
        sys.stdout.flush()
    with suppress(OSError):
        kept = os.dup(1)
        os.dup2(2, 1)
    try:
        yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)


_read: dict[str, tuple[object, list[Provider]]] = {}


def providers(group: str) -> list[Provider]:
    """Return the entry points of a group by name; a distribution that is found twice on the path counts once.

    The metadata of hundreds of distributions is read again only if the path or a folder on it has changed.
    """
    path = _path()
    if group not in _read or _read[group][0] != path:
        _read[group] = path, _providers(group)
    return [*_read[group][1]]


def _path() -> object:
    """Return a value that changes when a distribution is installed or removed: modification times of the folders."""
    places: list[object] = [*map(id, sys.meta_path)]
    for place in sys.path:
        found = None
        with suppress(OSError, ValueError):
            found = os.stat(place or os.curdir)
        places.append((place, found and (found.st_dev, found.st_ino, found.st_mtime_ns)))
    return places


def _providers(group: str) -> list[Provider]:
    found: dict[tuple[str, str], Provider] = {}
    for distribution in importlib_metadata.distributions():
        for entry in _entries(distribution, group):
            name, version = (field_of(distribution, field) or "unknown" for field in ("Name", "Version"))
            key = (entry.name, normalised(name))
            found.setdefault(key, Provider(entry.name, entry.value, name, version, entry))
    return sorted(found.values(), key=lambda provider: (provider.name, provider.distribution))


def normalised(name: str) -> str:
    """Return a distribution's name in the normalised form that package indices compare."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _entries(distribution: Any, group: str) -> Iterable[importlib_metadata.EntryPoint]:
    try:
        return [entry for entry in distribution.entry_points if entry.group == group]
    except Exception:  # a distribution with unreadable metadata is not ours to report
        return []


def field_of(distribution: Any, name: str) -> str:
    """Return a field of a distribution's metadata; empty where it has none."""
    try:
        return distribution.metadata[name] or ""
    except Exception:  # an interrupted installation leaves entry points without METADATA
        return ""


def describe_failure(error: BaseException) -> str:
    """Return an exception of somebody else's code as one line."""
    if isinstance(error, EndedError) and error.__cause__ is not None:
        error = error.__cause__
    text = shorten(str(error), 300, placeholder=" …")
    if isinstance(error, LayerSyncError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
