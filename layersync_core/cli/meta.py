"""Models without weights, from a diffusers config."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from layersync_core.errors import ConfigError


def build_on_meta(config: Mapping[str, Any]) -> Any:
    """Return the model of a config with ``_class_name`` on the meta device: its blocks, and no weights.

    Raises:
        ConfigError: diffusers is missing, has no such class, or cannot build it from this config.
    """
    import torch

    name = config.get("_class_name")
    try:
        # By name: core works without diffusers, and only this needs it.
        diffusers = import_module("diffusers")
    except ModuleNotFoundError:
        raise ConfigError(f"building {name} from its config needs diffusers; pip install diffusers") from None
    model_class = getattr(diffusers, str(name), None)
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
