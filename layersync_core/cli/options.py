"""Commands whose flags are the fields of pydantic models, beside a file with the same keys."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, Optional

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.core import TyperCommand

from layersync_core.cli import completing, kinds
from layersync_core.files import read_settings
from layersync_core.spelling import ALIASES, LOSS_TYPE, OFF, ON, merged

_ALIASES = {*ALIASES, LOSS_TYPE}


def add_command(
    app: Any,
    name: str,
    run: Callable[..., int | None],
    models: Sequence[type[BaseModel]],
    help: str,
    parameters: Iterable[inspect.Parameter] = (),
    defaults: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Register a command with ``--config FILE`` and a flag for each field of the models.

    Args:
        app: A ``typer.Typer``.
        name: Name of the command.
        run: Called with the merged settings, flags before the file, and the values of ``parameters`` by name; values
            of flags are text, as the models take them.
        models: Their fields are the flags, snake_case; a flag of a boolean may stand without a value. ``layersync
            config --for NAME`` prints a file of them.
        help: One paragraph.
        parameters: Further parameters with Typer annotations.
        defaults: What this command does where a setting is not given, by key, where that is not the field's default.
    """
    fields = {key: field for model in models for key, field in model.model_fields.items()}
    schemas = {key: schema for model in models for key, schema in kinds.field_schemas(model).items()}
    own = [
        *parameters,
        _option("config", "JSON, YAML or TOML file of the same keys; flags win over it", "<file>"),
    ]
    flags = [_flag(key, field, schemas.get(key, {}), defaults.get(key)) for key, field in fields.items()]
    flags += [_option(alias, "", "<text>", hidden=True) for alias in sorted(_ALIASES - set(fields))]

    def command(**values: Any) -> int:
        path = values.pop("config")
        given = {flag.name: values.pop(flag.name) for flag in flags}
        return run(merged(read_settings(path) if path else {}, given), **values) or 0

    signature = inspect.Signature([*own, *flags])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {key: parameter.annotation for key, parameter in signature.parameters.items()}
    switches = {key for key, field in fields.items() if field.annotation is bool}
    words = _Words(frozenset(switches), frozenset({*fields, *_ALIASES, "config"}))
    command.models, command.defaults = tuple(models), defaults  # type: ignore[attr-defined]
    settings = {"allow_interspersed_args": False} if "command" in signature.parameters else {}
    app.command(name, help=help, cls=_command_class(words), context_settings=settings)(command)


def models_of(command: Any) -> tuple[type[BaseModel], ...]:
    """Return the models whose fields a registered command takes from a file; none where it takes no file."""
    return getattr(command.callback, "models", ())


def defaults_of(command: Any) -> Mapping[str, str]:
    """Return the defaults of a registered command that are not those of its models, in words."""
    return getattr(command.callback, "defaults", {})


def _flag(key: str, field: FieldInfo, schema: Mapping[str, Any], default: str | None) -> inspect.Parameter:
    values = completing.values(key, schema)
    return _option(key, kinds.help_of(field, schema, default), kinds.metavar(schema), values)


def _option(
    name: str, help: str, metavar: str, values: completing.Values | None = None, hidden: bool = False
) -> inspect.Parameter:
    # Text, so that one model judges values from flags, files and forms alike.
    option = typer.Option(
        f"--{name}", help=help, metavar=metavar, autocompletion=values, hidden=hidden, show_default=False
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Optional[str], option],  # noqa: UP045
    )


def _key(flag: str) -> str:
    return flag.lstrip("-").replace("-", "_")


class _Words(NamedTuple):
    """The flags of a command: switches may stand without a value, and all may be spelt with dashes."""

    switches: frozenset[str]
    flags: frozenset[str]


def _command_class(words: _Words) -> type[TyperCommand]:
    class FlagCommand(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            foreign = [] if ctx.allow_interspersed_args else _foreign(args, words)
            own = args[: len(args) - len(foreign)]
            # The separator, since the command may begin with an option: -m MODULE.
            separator = ["--"] if foreign and foreign[0] != "--" else []
            return super().parse_args(ctx, [*normalise(own, *words), *separator, *foreign])

        def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
            # What follows belongs to the command to start, whose flags only that command knows.
            return [] if ctx.params.get("command") else super().shell_complete(ctx, incomplete)

    return FlagCommand


def _foreign(arguments: Sequence[str], words: _Words) -> list[str]:
    """Return the words from the first on that is not ours: the command to start, and all its arguments."""
    position = 0
    while position < len(arguments):
        name, equals, _ = arguments[position].partition("=")
        if name in ("--", "-m") or not name.startswith("-"):
            return list(arguments[position:])
        takes_value = _key(name) in words.flags and not equals
        if takes_value and _key(name) in words.switches:
            following = arguments[position + 1 : position + 2]
            takes_value = bool(following) and following[0].lower() in (*ON, *OFF)
        position += 2 if takes_value else 1
    return []


def normalise(arguments: Sequence[str], switches: Collection[str], snake_case: Collection[str]) -> list[str]:
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
