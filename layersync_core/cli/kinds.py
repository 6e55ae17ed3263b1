"""What values a setting takes: its type, its choices and its limits, from the JSON schema of its pydantic model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

_WORDS = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "array": "a list"}
_METAVARS = {"boolean": "[true|false]", "integer": "<int>", "number": "<number>", "array": "<list>"}
_SPELT = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""How pydantic spells the limits of a number that a validator of its own looks at first."""
_LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


@cache  # several commands have the same models, and pydantic takes milliseconds for each
def field_schemas(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Return the JSON schema of each field of a pydantic model, without what stands for 'not given'.

    Args:
        model: Settings; a field of a type that JSON does not know has no schema, and is text.
    """
    try:
        whole = model.model_json_schema()
    except Exception:  # of one field's type, which is somebody else's
        found = {key: _schema(field) for key, field in model.model_fields.items()}
        return {key: _plain(shape, shape.get("$defs", {})) for key, shape in found.items()}
    return {key: _plain(shape, whole.get("$defs", {})) for key, shape in whole.get("properties", {}).items()}


def _schema(field: FieldInfo) -> dict[str, Any]:
    try:
        return judge_of(field).json_schema()
    except Exception:
        return {}


def judge_of(field: FieldInfo) -> TypeAdapter[Any]:
    """Return what judges the values of one field, without the checks that its model adds."""
    kind: Any = Annotated[field.annotation, field]
    return TypeAdapter(kind)


def _plain(shape: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    shape = {_SPELT.get(key, key): value for key, value in shape.items()}
    if "$ref" in shape:
        return _plain(parts.get(shape["$ref"].rpartition("/")[2], {}), parts)
    if "const" in shape:
        return {"enum": [shape["const"]]}
    if len(shape.get("allOf", ())) == 1:
        return _plain(shape["allOf"][0], parts)
    if "anyOf" in shape:
        shapes = [_plain(one, parts) for one in shape["anyOf"] if one.get("type") != "null"]
        return {**shapes[0], **{key: shape[key] for key in _LIMITS if key in shape}} if len(shapes) == 1 else {}
    return shape


def choices(schema: Mapping[str, Any]) -> list[str]:
    """Return the values of a setting that has a few; none where it has many."""
    if schema.get("type") == "boolean":
        return ["true", "false"]
    return [str(choice) for choice in schema.get("enum", ())]


def metavar(schema: Mapping[str, Any]) -> str:
    """Return what stands for a setting's value in the help of a command; a switch may stand without one."""
    if "enum" in schema:
        return "|".join(choices(schema))
    return _METAVARS.get(str(schema.get("type")), "<text>")


def described(schema: Mapping[str, Any]) -> str:
    """Return what a setting may be, in words."""
    if "enum" in schema:
        return f"one of {', '.join(map(json.dumps, choices(schema)))}"
    return ", ".join([_WORDS.get(str(schema.get("type")), "text"), *limits(schema)])


def limits(schema: Mapping[str, Any]) -> list[str]:
    """Return the limits of a number, in words."""
    return [f"{words} {written(schema[key])}" for key, words in _LIMITS.items() if key in schema]


def help_of(field: FieldInfo, schema: Mapping[str, Any], default: str | None = None) -> str:
    """Return the help of a flag: what it is, its limits, and its default where it has one.

    A switch that is off until it is given needs no word about that.

    Args:
        field: The setting.
        schema: Its JSON schema.
        default: What is done where it is not given, where that is not the field's default.
    """
    text, value = field.description or "", default_of(field)
    notes = limits(schema)
    if default is None and not (value is None or value is False or value == "" or "default" in text):
        default = written(value)
    if default is not None:
        notes.append(f"default: {default}")
    return f"{text} [{'; '.join(notes)}]".strip() if notes else text


def default_of(field: FieldInfo) -> Any:
    """Return a field's default; None where it has none."""
    return None if field.is_required() else field.get_default(call_default_factory=True)


def written(value: Any) -> str:
    """Return a value as flags and files of settings have it, text without quotes."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
