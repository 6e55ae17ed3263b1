"""``layersync env``: the variables that switch LayerSync on, for programs that ``layersync run`` cannot start."""

from __future__ import annotations

import os
import shlex
import tempfile
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from layersync_core.cli.options import add_command
from layersync_core.cli.run import models
from layersync_core.run.settings import is_on, read, variables
from layersync_core.run.startup.sitecustomize import VARIABLE
from layersync_core.run.status import SETTINGS


def register(app: Any) -> None:
    """Register the command."""
    add_command(
        app,
        "env",
        run,
        models(),
        "Print the environment variables that switch LayerSync on in any program started with them, for the shell: "
        'eval "$(layersync env --config layersync.json)".',
        [
            Parameter(
                "plain",
                Parameter.KEYWORD_ONLY,
                annotation=Annotated[bool, typer.Option("--plain", help="print NAME=value lines, as in env files")],
                default=False,
            )
        ],
    )


def run(settings: dict[str, Any], plain: bool) -> int:
    """Print the variables; return 0."""
    known = read(settings)
    if not is_on(known):  # the shell may still have it on
        print(f"{VARIABLE}=" if plain else f"unset {VARIABLE}")
        return 0
    for name, value in variables(known, os.environ, _settings_file).items():
        print(f"{name}={value}" if plain else f"export {name}={shlex.quote(value)}")
    return 0


def _settings_file() -> Path:
    # It must outlive this command, since programs started with the variables read it.
    return Path(tempfile.mkdtemp(prefix="layersync-settings-"), SETTINGS)
