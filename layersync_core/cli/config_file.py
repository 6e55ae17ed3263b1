"""``layersync config``: a file of every setting with its meaning, to begin a file of one's own with.

In TOML, which has comments and which Python itself reads; every key stands in a comment, since a setting that is given
is not the same as one that is left out: it may ask for LayerSync, and a resumed run holds on to it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from inspect import getdoc
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from layersync_core import __version__
from layersync_core.cli import completing, kinds
from layersync_core.cli.options import defaults_of, models_of
from layersync_core.cli.plugin_commands import command_name
from layersync_core.config import LayerSyncConfig, switch_of
from layersync_core.entrypoints import PLUGIN_COMMANDS
from layersync_core.errors import ConfigError, did_you_mean
from layersync_core.losses.plugins import third_parties

_WIDTH = 100
_FIRST = "run"
_USAGE = {_FIRST: "layersync run --config layersync.toml -- COMMAND ..."}
_HEAD = (
    "Every line is a comment: as it is, this file sets nothing. Take the # away in front of a key to set it. The "
    "values are the defaults; where there is no default, an example. A setting that would do nothing without another "
    "one is refused when the file is read, with the name of the one that is missing."
)


def register(app: Any) -> None:
    """Register the command."""

    @app.command("config")  # type: ignore[untyped-decorator]
    def config(
        command: Annotated[
            str,
            typer.Option(
                "--for", metavar="<command>", help="command that the file is for", autocompletion=_commands_like
            ),
        ] = _FIRST,
    ) -> None:
        """Print a commented TOML file of every setting, plugins' included, with its default and its meaning."""
        print(text_for(command))


def text_for(command: str) -> str:
    """Return the file for a command that takes one.

    Raises:
        ConfigError: There is no such command.
    """
    known = _commands()
    if command not in known and command in PLUGIN_COMMANDS:
        raise ConfigError(f"--for {command}: that command is not installed; pip install {PLUGIN_COMMANDS[command]}")
    if command not in known:
        raise ConfigError(f"--for {command}: no such command takes a file of settings; {did_you_mean(command, known)}")
    usage = _USAGE.get(command, f"layersync {command} --config layersync.toml")
    lines = [
        f"# Settings of layersync {command}, written by layersync-core {__version__}.",
        *_comment(_HEAD),
        "#",
        f"#   layersync config{'' if command == _FIRST else f' --for {command}'} > layersync.toml",
        f"#   {usage}",
    ]
    for model in models_of(known[command]):
        lines += _section(model, command, defaults_of(known[command]))
    return "\n".join(lines)


def _commands() -> dict[str, Any]:
    """Return the commands that take a file of settings, by name."""
    from layersync_core.cli import application

    return {command_name(item): item for item in application().registered_commands if models_of(item)}


def _commands_like(incomplete: str) -> list[str]:
    return completing.among(list(_commands()))(incomplete)


def _section(model: type[BaseModel], command: str, defaults: Mapping[str, str]) -> Iterator[str]:
    plugins = third_parties()
    owner = plugins.owner_of(model)
    yield ""
    yield f"# ---- {owner.name if owner else _title(model, command)}{f' ({owner})' if owner else ''} ----"
    yield from _comment(_summary(model))
    if owner and command != "train" and owner.title in plugins.objectives_alone():
        yield from _comment("It replaces the main loss, so its keys are for layersync train: see --for train.")
        return
    schemas, switch = kinds.field_schemas(model), switch_of(model)
    for key, field in model.model_fields.items():
        schema = schemas.get(key, {})
        yield ""
        yield from _comment(field.description or "")
        yield from _comment("; ".join([kinds.described(schema), *_default(field, defaults.get(key))]))
        if (value := example(field, schema, is_switch=key == switch)) is not None:
            yield f"#{_bare(key)} = {toml(value)}"


def _default(field: FieldInfo, told: str | None) -> list[str]:
    if told is None and "default" in (field.description or ""):
        return []
    default = kinds.default_of(field)
    if told is None and default is None:
        return ["no default"]
    return [f"default: {told or kinds.written(default)}"]


def _title(model: type[BaseModel], command: str) -> str:
    return "LayerSync" if model is LayerSyncConfig else f"layersync {command}"


def _summary(model: type[BaseModel]) -> str:
    # Python inherits a docstring, and pydantic's own is long.
    return (getdoc(model) or "").partition("\n\n")[0].replace("``", "") if vars(model).get("__doc__") else ""


def example(field: FieldInfo, schema: Mapping[str, Any], is_switch: bool = False) -> Any:
    """Return a value that a field takes: the default, else an example; None where none is known.

    Args:
        field: Of a pydantic model; ``examples`` of its own come first, and none of them at all means that no value of
            it is worth showing.
        schema: Its JSON schema.
        is_switch: It switches a regularizer on, which is what a file is written for.
    """
    if field.examples is not None:
        return next(iter(field.examples), None)
    if is_switch:
        return True
    if (default := kinds.default_of(field)) is not None:
        return default
    lowest = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
    guesses = [*schema.get("enum", ()), lowest, float(lowest), "name", [], True]
    return next((guess for guess in guesses if _fits(field, guess)), None)


def _fits(field: FieldInfo, value: Any) -> bool:
    try:
        kinds.judge_of(field).validate_python(value, strict=True)
    except ValidationError:
        return False
    except Exception:  # of somebody else's type
        return False
    return True


def toml(value: Any) -> str:
    """Return a value as TOML has it, which is JSON but for mappings and what no number is."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_bare(str(key))} = {toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _bare(key: str) -> str:
    return key if key.isascii() and key.replace("-", "_").isidentifier() else toml(key)


def _comment(text: str) -> Sequence[str]:
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, _WIDTH, break_long_words=False)]
    return [f"# {line}" for line in lines]
