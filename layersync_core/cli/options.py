"""Commands whose flags are the fields of pydantic models, beside a JSON file with the same keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Optional

import typer
from pydantic import BaseModel
from typer.core import TyperCommand

from layersync_core.config import ALIASES, canonical
from layersync_core.files import read_json

_ALIASES = {*ALIASES, "loss_type"}


def add_command(
    app: Any,
    name: str,
    run: Callable[..., int | None],
    models: Sequence[type[BaseModel]],
    help: str,
    parameters: Iterable[inspect.Parameter] = (),
) -> None:
    """Register a command with ``--config FILE`` and a flag for each field of the models.

    Args:
        app: A ``typer.Typer``.
        name: Name of the command.
        run: Called with the merged settings, flags before the file, and the values of ``parameters`` by name; values
            of flags are text, as the models take them.
        models: Their fields are the flags, snake_case; a flag of a boolean may stand without a value.
        help: One paragraph.
        parameters: Further parameters with Typer annotations.
    """
    fields = {key: field for model in models for key, field in model.model_fields.items()}
    own = [*parameters, _option("config", ["--config"], "JSON file with the same keys; flags win over it")]
    flags = [_option(key, [f"--{key}"], field.description or "") for key, field in fields.items()]
    flags += [_option(alias, [f"--{alias}"], "", hidden=True) for alias in sorted(_ALIASES - set(fields))]

    def command(**values: Any) -> int:
        path = values.pop("config")
        settings = canonical(read_json(path)) if path else {}
        settings |= canonical({flag.name: values.pop(flag.name) for flag in flags})
        return run(settings, **values) or 0

    signature = inspect.Signature([*own, *flags])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {key: parameter.annotation for key, parameter in signature.parameters.items()}
    switches = {key for key, field in fields.items() if field.annotation is bool}
    app.command(name, help=help, cls=_command_class(switches, {*fields, *_ALIASES, "config"}))(command)


def _option(name: str, flags: list[str], help: str, hidden: bool = False) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        # Text, so that one model judges values from flags, files and forms alike.
        annotation=Annotated[Optional[str], typer.Option(*flags, help=help, hidden=hidden, show_default=False)],  # noqa: UP045
    )


def _key(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


def _command_class(switches: set[str], snake_case: set[str]) -> type[TyperCommand]:
    class FlagCommand(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, normalise(args, switches, snake_case))

    return FlagCommand


def normalise(arguments: Sequence[str], switches: set[str], snake_case: set[str]) -> list[str]:
    """Return arguments with underscores in the flags' names, and ``true`` after a switch that has no value."""
    result: list[str] = []
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--") and _key(name) in snake_case:
            key = _key(name)
            result.append(f"--{key}{equals}{value}")
            following = arguments[position + 1] if position + 1 < len(arguments) else "--"
            if key in switches and not equals and following.startswith("--"):
                result.append("true")
        else:
            result.append(argument)
    return result
