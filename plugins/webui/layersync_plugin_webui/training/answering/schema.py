"""Every setting as plain values, read from the pydantic models without torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pydantic import BaseModel

from layersync_core import LaunchSettings, LayerSyncConfig, family_rows, field_schemas, third_parties

SWITCH = "_enabled"
TRAINER = "layersync_plugin_trainer"
_KINDS = {"boolean": "bool", "integer": "int", "number": "float", "string": "text", "array": "list"}


def one_line(text: str) -> str:
    """Return an error as the command line prints it."""
    return " ".join(text.split())


def everything() -> dict[str, Any]:
    """Return the models of the trainer, of ``layersync run`` and of each loss, and the families."""
    trainer, why = _trainer()
    losses = [described(LayerSyncConfig), *map(described, third_parties().config_models())]
    return {
        "trainer": trainer and described(trainer),
        "no_trainer": why,
        "run": described(LaunchSettings),
        "losses": losses,
        "missing": third_parties().missing(),
        "families": [
            {"family": row.family, "models": row.models, "state": row.state, "detail": row.detail}
            for row in family_rows()
        ],
    }


def _trainer() -> tuple[type[BaseModel] | None, str]:
    try:
        config: type[BaseModel] = import_module(f"{TRAINER}.config").TrainerConfig
    except ImportError as error:
        if getattr(error, "name", "") == TRAINER:
            return None, "the reference trainer is not installed; pip install layersync-plugin-trainer"
        return None, one_line(f"the reference trainer cannot be used: {type(error).__name__}: {error}")
    third_parties().reserve("layersync train", config)
    return config, ""


def described(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's name, its distribution's package and its fields."""
    fields = [_field(model, key) for key in model.model_fields]
    switch = next((field["key"] for field in fields if field["key"].endswith(SWITCH)), None)
    for field in fields:
        field["switch"] = field["key"] == switch
    return {"name": model.__name__, "package": model.__module__.partition(".")[0], "switch": switch, "fields": fields}


def _field(model: type[BaseModel], key: str) -> dict[str, Any]:
    info = model.model_fields[key]
    kind, rest = "text", dict[str, Any]()
    shape = field_schemas(model).get(key, {})
    if "enum" in shape:
        kind, rest = "choice", {"choices": [str(choice) for choice in shape["enum"]]}
    elif isinstance(shape.get("type"), str):
        kind = _KINDS.get(shape["type"], "text")
        limits = {"minimum": "least", "exclusiveMinimum": "above", "maximum": "most", "exclusiveMaximum": "below"}
        rest = {name: shape[word] for word, name in limits.items() if word in shape}
    default = None if info.is_required() else info.default
    if default is not None and not isinstance(default, (bool, int, float, str, list)):
        default = str(default)
    return {"key": key, "kind": kind, "default": default, "description": info.description or "", **rest}
