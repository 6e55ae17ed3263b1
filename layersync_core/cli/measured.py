"""``layersync inspect MODEL --inputs FILE``: blocks and tokens of a class that no adapter knows, from one forward."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from layersync_core.capture.discovery.found import Discovery
from layersync_core.cli.meta import build, config_of
from layersync_core.entrypoints import describe_failure, foreign
from layersync_core.errors import AdapterNotInstalledError, ConfigError, LayerSyncError, UnknownFamilyError
from layersync_core.families.registry import resolve


def measured(name: str, inputs: str) -> Discovery:
    """Return what one forward of a model with random weights shows.

    Args:
        name: Local folder or config.json, or ``owner/name`` on the hub, from which only the config is fetched.
        inputs: A safetensors file with the forward's tensors by name.

    Raises:
        LayerSyncError: The family is refused, the model cannot be built or run, or the file cannot be read.
    """
    from layersync_core.capture.discovery.discover import discover

    config = config_of(name)
    with suppress(UnknownFamilyError, AdapterNotInstalledError):  # the cases that this command is for
        resolve(config)
    arguments = read_inputs(inputs)
    model = build(config, "cpu")
    try:
        with foreign():
            return discover(model, arguments)
    except LayerSyncError:
        raise
    except Exception as error:  # the model's own forward may raise anything
        raise ConfigError(
            f"the forward of {type(model).__name__} fails with {', '.join(arguments)} of {inputs}: "
            f"{describe_failure(error)}"
        ) from error


def read_inputs(path: str) -> dict[str, Any]:
    """Return a forward's arguments by name. ``name.0``, ``name.1`` form a list; 0-dim integers become plain numbers.

    Raises:
        ConfigError: The file cannot be read.
    """
    try:
        from safetensors.torch import load
    except ModuleNotFoundError:
        raise ConfigError("reading --inputs needs safetensors; pip install safetensors") from None
    try:
        tensors = load(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # safetensors has its own exception
        raise ConfigError(f"{path} isn't a safetensors file: {error}") from None
    if not tensors:
        raise ConfigError(f"{path} has no tensors; expected the forward's tensors by name")
    return _nested(tensors, path)


def _nested(tensors: Mapping[str, Any], path: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    lists: dict[str, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        whole, _, place = name.partition(".")
        if place:
            lists.setdefault(whole, {})[place] = tensor
        else:
            arguments[name] = tensor if tensor.ndim or tensor.is_floating_point() else tensor.item()
    for name, items in lists.items():
        inner = _nested(items, path)
        if sorted(inner) != sorted(map(str, range(len(inner)))):
            raise ConfigError(f"{path} has {name}.{', '.join(inner)}; a list must have {name}.0, {name}.1 and so on")
        arguments[name] = [inner[str(place)] for place in range(len(inner))]
    return arguments
