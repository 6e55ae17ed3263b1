"""Variables and files of this environment that change what LayerSync does."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder

from layersync_core.cli.doctor.findings import Finding
from layersync_core.entrypoints import LOAD_VARIABLE, PLUGINS, loadable, providers
from layersync_core.errors import LayerSyncError
from layersync_core.families.registry import GROUP
from layersync_core.run.settings import STARTUP, from_environment, is_on
from layersync_core.run.startup.sitecustomize import VARIABLE


def look() -> Iterator[Finding]:
    """Yield what is set."""
    if (asked := loadable()) is not None:
        unknown = sorted(asked - {found.name for group in (GROUP, PLUGINS) for found in providers(group)})
        said = f"only {os.environ[LOAD_VARIABLE]} may be loaded" if asked else "no adapter and no plugin may be loaded"
        if unknown:
            said += f", and {' and '.join(unknown)} is not installed; correct or unset it"
        yield Finding("environment", LOAD_VARIABLE, "wrong" if unknown else "note", said)
    if os.environ.get(VARIABLE):
        yield _switched_on()
    if sys.flags.isolated or sys.flags.ignore_environment:
        yield Finding("environment", "python -I or -E", "note", "PYTHONPATH is ignored, which layersync run depends on")
    own = PathFinder.find_spec("sitecustomize", [place for place in sys.path if place != str(STARTUP)])
    if own is not None and own.origin:
        yield Finding(
            "environment", "sitecustomize", "note", "runs after the start-up hook of layersync run", "", own.origin
        )


def _switched_on() -> Finding:
    try:
        on = is_on(from_environment())
    except LayerSyncError as error:
        return Finding("environment", VARIABLE, "wrong", f"{error}; unset it, or create it again with layersync env")
    if not on:
        return Finding("environment", VARIABLE, "note", "is set, with LayerSync switched off")
    return Finding("environment", VARIABLE, "note", "is set: every Python started from here trains with LayerSync")
