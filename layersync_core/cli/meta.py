"""The model named on a command line: built without weights from a config, or a family's tiny model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from layersync_core.entrypoints import describe_failure, foreign
from layersync_core.errors import ConfigError, LayerSyncError, UnknownFamilyError, did_you_mean
from layersync_core.families.discovered import AUTO, adapter_named
from layersync_core.families.folders import read_model_config
from layersync_core.families.hub import fetch_config, is_hub_name
from layersync_core.families.known import KNOWN, current_name
from layersync_core.families.refusals import REFUSALS
from layersync_core.families.registry import installed, load_tiny, resolve
from layersync_core.protocol import Adapter


@dataclass(frozen=True)
class NamedModel:
    """A model that was asked for by name.

    Attributes:
        title: What messages call it.
        adapter: The adapter of its family.
        model: The model: on the meta device, or the family's tiny model with its weights.
    """

    title: str
    adapter: Adapter
    model: Any


def model_of(name: str, family: str | None = None) -> NamedModel:
    """Return the model for a family's name, a local path or a name on the hub; a local path takes precedence.

    Args:
        name: A family's id for its tiny model, a model's or pipeline's folder, a config.json, or ``owner/name``.
        family: Family to use instead of the one that the model's class indicates, or an adapter file.

    Raises:
        LayerSyncError: There is no such model, its config cannot be fetched or built, or its family is unknown, refused
            or not usable.
    """
    if family == AUTO:
        try:
            return model_of(name)
        except UnknownFamilyError as error:
            if not os.path.exists(name) and _is_word(name):
                raise
            raise UnknownFamilyError(
                f"{error.model_class or name}: family auto finds blocks and tokens in a forward, which this command "
                "does not run; layersync inspect MODEL --inputs FILE.safetensors --save adapter.json does, and the "
                "file it writes is a family",
                model_class=error.model_class,
            ) from None
    if not os.path.exists(name) and _is_word(name):
        return _tiny(name, family)
    config = config_of(name)
    # Before the model is built, so that a refused or unknown class is reported as such.
    adapter = adapter_named(family) if family else resolve(config)
    model = build_on_meta(config)
    # Once more with the model, since its settings are complete and those of the file may not be.
    return NamedModel(type(model).__name__, adapter if family else resolve(model), model)


def config_of(name: str) -> dict[str, Any]:
    """Return the config for a local path or a name on the hub.

    Raises:
        LayerSyncError: It cannot be read or fetched.
    """
    is_local = os.path.exists(name)
    return dict(read_model_config(fetch_config(name) if not is_local and is_hub_name(name) else name))


def _is_word(name: str) -> bool:
    return bool(name) and not name.startswith((".", "~")) and not name.endswith(".json") and not {*"/\\"} & {*name}


def _tiny(name: str, family: str | None) -> NamedModel:
    families = {*installed(), *KNOWN}
    if name not in {*families, *REFUSALS}:
        near = did_you_mean(name.lower(), sorted(families))
        raise UnknownFamilyError(
            f"{name} is neither a local path nor a family (a model on the hub is named owner/name); {near}", family=name
        )
    try:
        tiny = load_tiny(name)
        with foreign():
            model = tiny.tiny_model()
    except LayerSyncError:
        raise
    except Exception as error:  # a third party's module may raise anything
        raise ConfigError(f"the tiny model of family {name} cannot be built: {describe_failure(error)}") from error
    return NamedModel(f"tiny {type(model).__name__}", adapter_named(family or name), model)


def build_on_meta(config: Mapping[str, Any]) -> Any:
    """Return the model of a config with ``_class_name`` on the meta device: its blocks, and no weights.

    Raises:
        ConfigError: diffusers is missing, has no such class, or cannot build it from this config.
    """
    return build(config, "meta")


def build(config: Mapping[str, Any], device: str) -> Any:
    """Return the model of a config with ``_class_name``, with random weights on a device.

    Raises:
        ConfigError: As for ``build_on_meta``.
    """
    import torch

    name = current_name(str(config.get("_class_name")), config.get("norm_type"))
    try:
        # Imported by name: core works without diffusers, and only this needs it.
        diffusers = import_module("diffusers")
    except ModuleNotFoundError:
        raise ConfigError(f"building {name} from its config needs diffusers; pip install diffusers") from None
    model_class = getattr(diffusers, name, None)
    if model_class is None:
        raise ConfigError(
            f"{name} is not a class of diffusers {diffusers.__version__}, so it cannot be built from its config; "
            "check it from Python with attach(model, config)"
        )
    # Keeps diffusers' complaints about unknown settings from appearing above our own message.
    verbosity = diffusers.logging.get_verbosity()
    diffusers.logging.set_verbosity_error()
    try:
        with torch.device(device):
            return model_class.from_config(dict(config))
    except Exception as error:  # diffusers may raise anything at a config that does not fit its class
        raise ConfigError(f"diffusers cannot build {name} from this config: {type(error).__name__}: {error}") from error
    finally:
        diffusers.logging.set_verbosity(verbosity)
