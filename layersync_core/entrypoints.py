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
"""Group of the plugins' entry points."""

KNOWN_PLUGINS = {"crepa": "layersync-plugin-crepa"}
"""Distributions of the regularizers that trainers' configurations enable, by name: without one its keys do nothing."""

PLUGIN_COMMANDS = {
    **dict.fromkeys(("train", "suggest"), "layersync-plugin-trainer"),
    "webui": "layersync-plugin-webui",
}
"""Distributions of ours that bring a command, by its name."""

_OURS = frozenset({*KNOWN_PLUGINS.values(), *PLUGIN_COMMANDS.values()})

_SLOW = 5
"""Seconds from which it is said that something takes long to load."""

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

    @property
    def is_ours(self) -> bool:
        """Whether it is a plugin of this project that others rely on by name."""
        return _normalised(self.distribution) in _OURS

    def load(self) -> Any:
        """Import the object, and say if it takes long; what the import raises comes through, as in ``foreign``."""
        started = time.monotonic()
        try:
            with foreign():
                return self._entry.load()
        finally:
            if (took := time.monotonic() - started) > _SLOW:
                kind = "plugin" if self._entry.group == PLUGINS else "adapter"
                log.warning(
                    "%s %s (%s) took %.0f s to load; %s leaves it out", kind, self, self.name, took, LOAD_VARIABLE
                )

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


class EndedError(Exception):
    """Somebody else's code tried to end the program; the cause is what it raised."""


@contextmanager
def foreign() -> Iterator[None]:
    """Run somebody else's code: it prints on standard error, and cannot end the program.

    A KeyboardInterrupt comes through, since it may be the user's.

    Raises:
        EndedError: The code raised what is no Exception, such as SystemExit where it is a script.
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
    """Let what processes and C libraries print go to standard error too: the shell may evaluate a program's output."""
    kept = None
    with suppress(OSError, ValueError, AttributeError):  # closed, or none
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


def providers(group: str) -> list[Provider]:
    """Return the entry points of a group by name; a distribution that is found twice on the path counts once."""
    found: dict[tuple[str, str], Provider] = {}
    for distribution in importlib_metadata.distributions():
        for entry in _entries(distribution, group):
            name, version = _field(distribution, "Name"), _field(distribution, "Version")
            key = (entry.name, _normalised(name))
            found.setdefault(key, Provider(entry.name, entry.value, name, version, entry))
    return sorted(found.values(), key=lambda provider: (provider.name, provider.distribution))


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


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
    """Return what somebody else's code raised, in one line."""
    if isinstance(error, EndedError) and error.__cause__ is not None:
        error = error.__cause__
    text = shorten(str(error), 300, placeholder=" …")
    if isinstance(error, LayerSyncError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
