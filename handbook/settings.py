"""The reference of settings, from the pydantic models of core and of the plugins in this repository."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from layersync_core import LaunchSettings, LayerSyncConfig, field_schemas

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_KINDS = {
    "boolean": "true or false",
    "string": "text",
    "array": "a list",
    "number": "a number",
    "integer": "an integer",
}
_WHERE = {
    "LayerSyncConfig": ("LayerSync", "`attach`, `layersync run` and `layersync train`"),
    "LaunchSettings": ("layersync run", "`layersync run`, beside those of LayerSync"),
    "TrainerConfig": ("layersync train", "`layersync train`, beside those of LayerSync"),
    "SuggestConfig": ("layersync suggest", "`layersync suggest`"),
    "CrepaConfig": ("CREPA", "the same, with [layersync-plugin-crepa](../plugins/crepa.md)"),
    "TwinFlowConfig": ("TwinFlow", "`layersync train`, with [layersync-plugin-twinflow](../plugins/twinflow.md)"),
    "WebuiConfig": ("layersync webui", "`layersync webui`, with [layersync-plugin-webui](../plugins/webui.md)"),
    "DispersiveConfig": (
        "Example: dispersive loss",
        "the same, with [the example](../plugins/example-dispersive.md)",
    ),
}


def models(root: Path) -> list[type[BaseModel]]:
    """Return core's models and those of each plugin."""
    found: list[type[BaseModel]] = [LayerSyncConfig, LaunchSettings]
    for package in sorted(path.name for path in root.glob("plugins/*/layersync_*")):
        try:
            module = import_module(f"{package}.config")
        except ModuleNotFoundError:
            module = import_module(package)
        own = [it for it in vars(module).values() if isinstance(it, type) and issubclass(it, BaseModel)]
        found += [it for it in own if it.__module__ == module.__name__ and not it.__name__.startswith("_")]
    return found


def page(root: Path) -> str:
    """Return the reference."""
    lines = [
        "# All settings",
        "Every key of core and of the plugins in this repository, as the code declares it; how they are read is in "
        "[Configuration](../configuration.md). A key stands in a file, in a mapping, or as a flag `--key VALUE`.",
    ]
    for model in models(root):
        title, where = _WHERE.get(model.__name__, (model.__name__, f"`{model.__module__}`"))
        lines += [f"## {title}", f"For {where}.", table(model)]
    return "\n\n".join(lines) + "\n"


def table(model: type[BaseModel]) -> str:
    """Return a table of a model's keys."""
    rows = ["| key | default | limits | meaning |", "| --- | --- | --- | --- |"]
    schemas = field_schemas(model)
    for key, field in model.model_fields.items():
        default = "none" if field.default is None else f"`{_plain(field.default)}`"
        rows.append(f"| `{key}` | {default} | {_limits(schemas[key])} | {_cell(field.description or '')} |")
    return "\n".join(rows)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("[[", "\\[\\[").replace("]]", "\\]\\]")


def _limits(schema: Mapping[str, Any]) -> str:
    return ", ".join([_kind(schema), *(f"{sign} {schema[key]}" for key, sign in _BOUNDS.items() if key in schema)])


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{choice}`" for choice in schema.get("enum", [schema.get("const")]))
    kind: str = schema.get("type", "anything")
    return _KINDS.get(kind, kind)
