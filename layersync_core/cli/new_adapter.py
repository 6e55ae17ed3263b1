"""``layersync new-adapter NAME --model-class package.module:Class``: an installable package with an adapter."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Optional

import typer

from layersync_core.cli.new_regularizer import Output, next_steps
from layersync_core.errors import LayerSyncWarning

_CLASS = typer.Option(
    "--model-class", metavar="<module:class>", help="the model's class, as package.module:Class; it isn't changed"
)
_CONFIG = typer.Option("--config", metavar="<file>", help="config.json or model folder with the settings to scale down")


def register(app: Any) -> None:
    """Register the command."""

    @app.command("new-adapter")  # type: ignore[untyped-decorator]
    def new_adapter(
        name: Annotated[str, typer.Argument(help="the family's id, such as my_model")],
        model_class: Annotated[str, _CLASS],
        config: Annotated[Optional[str], _CONFIG] = None,  # noqa: UP045
        output: Output = None,
    ) -> None:
        """Write an installable adapter package from what is measured on a tiny model of a class."""
        from layersync_core.families.folders import read_model_config
        from layersync_core.scaffold.adapter import new_adapter

        made = new_adapter(name, model_class, read_model_config(config) if config else None, output)
        for note in made.notes:
            warnings.warn(note, LayerSyncWarning, stacklevel=1)
        print("\n".join([f"{made.folder}: an adapter of {model_class.partition(':')[2]}", *made.found]))
        if made.open:
            print("to fill in:", *made.open, sep="\n")
        print(next_steps(made.folder, "pytest peft"))
