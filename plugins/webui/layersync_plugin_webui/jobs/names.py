"""Names of runs: each is a single folder directly below the folder of runs."""

from __future__ import annotations

import os
from pathlib import Path

from layersync_core import PROCESS_FILE, ConfigError
from layersync_plugin_webui.runs.finding import METRICS

LONGEST = 100
_ARMS = ("layersync", "vanilla")
_SKIPPED = ("checkpoint-", "__pycache__", "node_modules", "site-packages")


def make_folder(runs: Path, name: str) -> Path:
    """Make the folder of a new run.

    Raises:
        ConfigError: The name is invalid or taken, or the folder cannot be made.
    """
    folder = runs / checked_name(name)
    if any(os.path.lexists(runs / file) for file in (PROCESS_FILE, METRICS)):
        raise ConfigError(f"{runs} is itself a run, so no other below it is shown; give the page another --runs")
    try:
        folder.mkdir(mode=0o755)
    except FileExistsError:
        raise ConfigError(f"there is {name} below {runs} already; give another name") from None
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror or error}") from None
    return folder


def checked_name(name: str) -> str:
    """Return a name that a run can have.

    Raises:
        ConfigError: The name is not allowed.
    """
    if not name.strip():
        raise ConfigError("the run has no name; give one")
    if len(name) > LONGEST or len(name.encode("utf-8", "replace")) > 200:
        raise ConfigError(f"the name of the run has {len(name)} characters; give one of at most {LONGEST}")
    if not name.isprintable() or any(mark in name for mark in ("/", "\\", os.sep)) or name != name.strip():
        raise ConfigError(f"{name!r} cannot be the name of a run; give letters, digits, dashes and spaces between them")
    if name.startswith((".", "-", "~", *_SKIPPED)):
        raise ConfigError(f"a folder named {name!r} would not be shown as a run; give a name that begins differently")
    if name in _ARMS:
        raise ConfigError(f"{name!r} is what the arms of a comparison are called; give another name")
    return name
