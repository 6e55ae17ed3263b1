"""``layersync doctor``: what is installed, whether it fits together and works, and whether it reaches a command."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from importlib import import_module
from typing import Annotated, Any, Optional

import typer

from layersync_core.cli import completing
from layersync_core.cli.doctor.findings import Finding, text_of
from layersync_core.errors import ConfigError
from layersync_core.markup import printable

_NOT_WELL = 2

_MODEL = typer.Option(
    "--model",
    metavar="<model>",
    autocompletion=completing.families,
    help="also check a model, given as for layersync inspect",
)
_FAMILY = typer.Option(
    "--family",
    metavar="<family>",
    autocompletion=completing.families,
    help="family of the model, if its config does not determine it",
)
_ONLY = "check only the model and the command, not the installation"
_RUN = "also start the command after --, end it once torch is imported, and report whether LayerSync was loaded"


def register(app: Any) -> None:
    """Register the command."""

    @app.command("doctor")  # type: ignore[untyped-decorator]
    def doctor(
        model: Annotated[Optional[str], _MODEL] = None,  # noqa: UP045
        family: Annotated[Optional[str], _FAMILY] = None,  # noqa: UP045
        start: Annotated[bool, typer.Option("--run", help=_RUN)] = False,
        only: Annotated[bool, typer.Option("--only", help=_ONLY)] = False,
        as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
        command: Annotated[Optional[list[str]], typer.Argument(metavar="-- COMMAND ...", show_default=False)] = None,  # noqa: UP045
    ) -> int:
        """Check the installation: versions, adapters, plugins, devices; a model, or a training command, if asked."""
        if start != bool(command):
            raise ConfigError(
                "layersync doctor starts only the command after --run --, for example layersync doctor --run -- "
                "accelerate launch train.py"
            )
        if family is not None and model is None:
            raise ConfigError("--family names the model's family; give --model as well")
        if only and model is None and not command:
            raise ConfigError("--only leaves the installation out; say what to check with --model or --run")
        return run(model, family, command, as_json, only)


def run(
    model: str | None, family: str | None, command: list[str] | None, as_json: bool = False, only: bool = False
) -> int:
    """Print the findings; return 0 if all is well, else 2."""
    found: list[Finding] = []
    for finding in _look(model, family, command, only):
        found.append(finding)
        if not as_json:
            print(printable(text_of(finding)), flush=True)
    wrong = sum(finding.state == "wrong" for finding in found)
    if as_json:
        print(json.dumps({"well": not wrong, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        print("all is well" if not wrong else f"{wrong} thing{'s' * (wrong > 1)} to fix, marked with !")
    return _NOT_WELL if wrong else 0


def _look(model: str | None, family: str | None, command: list[str] | None, only: bool) -> Iterable[Finding]:
    # Imported one after the other, since later checks may take seconds or need torch.
    for part in () if only else ("software", "environment", "devices", "parts"):
        yield from import_module(f"layersync_core.cli.doctor.{part}").look()
    if model is not None:
        yield import_module("layersync_core.cli.doctor.models").look(model, family)
    if command:
        yield import_module("layersync_core.cli.doctor.reach").look(command)
