"""A model's class by name, and the arguments of its constructor."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from layersync_core.entrypoints import describe_failure, foreign
from layersync_core.errors import ConfigError, did_you_mean

_WRITTEN = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class Setting:
    """One argument of a constructor.

    Attributes:
        name: Its name.
        default: Its default; None also if it must be given.
        required: It has no default.
        annotation: Its annotation as text; empty if there is none.
    """

    name: str
    default: Any
    required: bool
    annotation: str


@dataclass(frozen=True)
class ModelClass:
    """A model's class.

    Attributes:
        module: The module it is imported from.
        kind: The class.
        settings: The arguments of its constructor, by name.
        given: Settings from a config file.
        unread: Keys of that file that the constructor does not take.
    """

    module: str
    kind: Any
    settings: Mapping[str, Setting]
    given: Mapping[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The class's name."""
        return str(self.kind.__name__)

    @property
    def bases(self) -> tuple[str, ...]:
        """The names of the class and its bases."""
        return tuple(base.__name__ for base in self.kind.__mro__)

    def values(self) -> dict[str, Any]:
        """Return every setting's value before scaling down; None for those that must be given and are not."""
        return {**{name: setting.default for name, setting in self.settings.items()}, **self.given}


def load_class(path: str, config: Mapping[str, Any] | None = None) -> ModelClass:
    """Import a model's class.

    Args:
        path: ``package.module:Class``.
        config: Settings from a config file; keys that begin with ``_`` are metadata.

    Raises:
        ConfigError: There is no such class, it isn't an ``nn.Module``, or the config file is for another class.
    """
    from torch import nn

    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"--model-class is {path!r}; it takes package.module:Class, such as diffusers:MyTransformer")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` does, for a model that isn't in a package yet
    try:
        with foreign():
            kind = getattr(import_module(module_name), name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--model-class {path}: there is no module {error.name}; install it, or run this where it can be imported"
        ) from None
    except AttributeError:
        known = [word for word, value in vars(sys.modules[module_name]).items() if isinstance(value, type)]
        near = did_you_mean(name, [*known, *getattr(sys.modules[module_name], "__all__", ())]) if known else ""
        said = near if near.startswith("did you mean") else "look up its name"
        raise ConfigError(f"--model-class {path}: {module_name} has no {name}; {said}") from None
    except Exception as error:  # somebody's module may raise anything
        raise ConfigError(f"--model-class {path}: cannot be imported: {describe_failure(error)}") from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ConfigError(f"--model-class {path}: it isn't a torch.nn.Module, so it has no blocks to align")
    settings, takes_anything = _settings(kind)
    given = {key: value for key, value in (config or {}).items() if not key.startswith("_")}
    said = str((config or {}).get("_class_name", name))
    if said not in (name, *(base.__name__ for base in kind.__mro__)):
        raise ConfigError(f"the config file is for {said}, but --model-class names {name}")
    unread = () if takes_anything else tuple(sorted(given.keys() - settings.keys()))
    return ModelClass(
        module_name, kind, settings, {key: value for key, value in given.items() if key not in unread}, unread
    )


def can_be_written(value: Any) -> bool:
    """Return whether a value's repr is its source code: numbers, strings, and tuples, lists and mappings of them."""
    if isinstance(value, (tuple, list)):
        return all(map(can_be_written, value))
    if isinstance(value, dict):
        return all(can_be_written(item) for pair in value.items() for item in pair)
    return isinstance(value, _WRITTEN)


def _settings(kind: Any) -> tuple[dict[str, Setting], bool]:
    """Return the arguments of a class's constructor, and whether it accepts any name."""
    try:
        parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    except (TypeError, ValueError):
        return {}, True
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = {}
    for item in parameters:
        if item.kind in several:
            continue
        required = item.default is inspect.Parameter.empty
        annotation = "" if item.annotation is inspect.Parameter.empty else inspect.formatannotation(item.annotation)
        if isinstance(item.annotation, str):
            annotation = item.annotation
        found[item.name] = Setting(item.name, None if required else item.default, required, annotation)
    return found, any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters)
