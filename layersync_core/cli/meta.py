"""The model that a command line names: built without weights from a config, or a family's tiny model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from layersync_core.entrypoints import describe_failure, foreign
from layersync_core.errors import ConfigError, LayerSyncError, UnknownFamilyError, did_you_mean
from layersync_core.families.folders import read_model_config
from layersync_core.families.hub import fetch_config, is_hub_name
from layersync_core.families.known import KNOWN, current_name
from layersync_core.families.refusals import REFUSALS
from layersync_core.families.registry import get_adapter, installed, load_tiny, resolve
from layersync_core.protocol import Adapter


@dataclass(frozen=True)
class NamedModel:
    """A model that was asked for by name.

    Attributes:
        title: What to call it.
        adapter: The adapter of its family.
        model: The model: on the meta device, or the family's tiny model with its weights.
    """

    title: str
    adapter: Adapter
    model: Any


def model_of(name: str, family: str | None = None) -> NamedModel:
    """Return the model of a family's name, a local path or a name on the hub; a local path wins over the others.

    Args:
        name: A family's id for its tiny model, a model's or pipeline's folder, a config.json, or ``owner/name``.
        family: Family to use instead of the one that the model's class tells.

    Raises:
        LayerSyncError: There is no such model, its config cannot be had or built, or its family is unknown, refused or
            not usable.
    """
    is_local = os.path.exists(name)
    if not is_local and _is_word(name):
        return _tiny(name, family)
    config = read_model_config(fetch_config(name) if not is_local and is_hub_name(name) else name)
    # Before the model is built, so that a class which is refused or unknown is told as that.
    adapter = get_adapter(family) if family else resolve(config)
    model = build_on_meta(config)
    # Once more with the model, whose settings are complete where those of the file may not be.
    return NamedModel(type(model).__name__, adapter if family else resolve(model), model)


def _is_word(name: str) -> bool:
    return bool(name) and not name.startswith((".", "~")) and not name.endswith(".json") and not {*"/\\"} & {*name}


def _tiny(name: str, family: str | None) -> NamedModel:
    families = {*installed(), *KNOWN}
    if name not in {*families, *REFUSALS}:
        near = did_you_mean(name.lower(), sorted(families))
        raise UnknownFamilyError(
            f"{name} is no local path and no family (a model of the hub is named owner/name); {near}", family=name
        )
    try:
        tiny = load_tiny(name)
        with foreign():
            model = tiny.tiny_model()
    except LayerSyncError:
        raise
    except Exception as error:  # whatever a third party's module raises
        raise ConfigError(f"the tiny model of family {name} cannot be built: {describe_failure(error)}") from error
    return NamedModel(f"tiny {type(model).__name__}", get_adapter(family or name), model)


def build_on_meta(config: Mapping[str, Any]) -> Any:
    """Return the model of a config with ``_class_name`` on the meta device: its blocks, and no weights.

    Raises:
        ConfigError: diffusers is missing, has no such class, or cannot build it from this config.
    """
    import torch

    name = current_name(str(config.get("_class_name")), config.get("norm_type"))
    try:
        # By name: core works without diffusers, and only this needs it.
        diffusers = import_module("diffusers")
    except ModuleNotFoundError:
        raise ConfigError(f"building {name} from its config needs diffusers; pip install diffusers") from None
    model_class = getattr(diffusers, name, None)
    if model_class is None:
        raise ConfigError(
            f"{name} is not a class of diffusers {diffusers.__version__}, so it cannot be built from its config; "
            "check it from Python with attach(model, config)"
        )
    # What diffusers says of settings it does not know would stand above our own line.
    verbosity = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    try:
        with torch.device("meta"):
            return model_class.from_config(dict(config))
    except Exception as error:  # whatever a config that does not fit its class makes diffusers raise
        raise ConfigError(f"diffusers cannot build {name} from this config: {type(error).__name__}: {error}") from error
    finally:
        diffusers.logging.set_verbosity(verbosity)
