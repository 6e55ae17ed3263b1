"""``layersync run -- COMMAND``: an unmodified training program, with LayerSync."""

from __future__ import annotations

import sys
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from layersync_core.cli.options import add_command
from layersync_core.config import LayerSyncConfig
from layersync_core.errors import ConfigError
from layersync_core.losses.plugins import third_parties
from layersync_core.run.settings import LaunchSettings, read

Command = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        metavar="-- COMMAND ...", help="command that starts the training; a script in .py is run with python"
    ),
]


def register(app: Any) -> None:
    """Register the command."""
    add_command(
        app,
        "run",
        run,
        models(),
        "Run an unmodified training program with LayerSync: python, accelerate launch, torchrun or any other command. "
        "Every Python process below it gets the start-up hook.",
        [Parameter("command", Parameter.KEYWORD_ONLY, annotation=Command, default=None)],
    )


def models() -> list[Any]:
    """Return the models whose fields are flags of a run; reading them does not need torch."""
    return [LayerSyncConfig, LaunchSettings, *third_parties().config_models()]


def run(settings: dict[str, Any], command: list[str] | None) -> int:
    """Run the command and return its exit code."""
    read_settings = read(settings)
    if not command:
        raise ConfigError(
            "layersync run has no command to start; for example layersync run --config layersync.json -- "
            "accelerate launch train.py"
        )
    # Inside a launcher (`accelerate launch -m layersync_core run train.py`) this process is a rank and must remain it.
    is_module = Path(sys.argv[0]).name == "__main__.py"
    if is_module and (command[0] == "-m" or command[0].endswith(".py")):
        from layersync_core.run.inprocess import run_script

        return run_script(read_settings, command)
    from layersync_core.run import command as launcher

    return launcher.run(read_settings, command)
