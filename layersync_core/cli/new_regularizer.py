"""``layersync new-regularizer NAME``: an installable package with a small regularizer and its test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from layersync_core.cli.plugin_commands import register_commands

Output = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--output", metavar="<folder>", help="folder to write; default: the distribution's name in the current folder"
    ),
]


def register(app: Any) -> None:
    """Register the command."""

    @app.command("new-regularizer")  # type: ignore[untyped-decorator]
    def new_regularizer(
        name: Annotated[
            str, typer.Argument(help="the regularizer's name and the prefix of its settings, such as my_loss")
        ],
        output: Output = None,
    ) -> None:
        """Write an installable regularizer package: settings, a small loss, and a test of its gradients."""
        from layersync_core.scaffold.regularizer import new_regularizer

        folder = new_regularizer(name, output, _settings())
        print(f"{folder}: a regularizer {name}\n{next_steps(folder, 'pytest')}")


def next_steps(folder: Path, tools: str) -> str:
    """Return the commands to run after a package was written, one per line.

    Args:
        folder: The package's folder.
        tools: What its tests need.
    """
    return f"cd {folder}\npip install -e . {tools}\npython -m pytest tests"


def _settings() -> set[str]:
    """Return every existing setting and flag: of LayerSync, of plugins and of the plugins' commands."""
    from layersync_core.losses.plugins import third_parties

    app = typer.Typer()
    app.callback()(lambda: None)  # makes even a single command part of a group
    register_commands(app, third_parties())
    commands: Any = typer.main.get_command(app)
    flags = {str(item.name) for command in commands.commands.values() for item in command.params}
    return flags | {key for model in third_parties().config_models() for key in model.model_fields}
