"""Names of new packages: what is derived from them, and which are taken. Imports no torch."""

from __future__ import annotations

import keyword
import re
from collections.abc import Collection, Mapping

import importlib_metadata

import layersync_core
from layersync_core.entrypoints import KNOWN_PLUGINS, PLUGIN_COMMANDS, PLUGINS, providers
from layersync_core.errors import ConfigError
from layersync_core.families.known import KNOWN, distribution_of
from layersync_core.families.refusals import REFUSALS
from layersync_core.families.registry import GROUP
from layersync_core.spelling import ALIASES, LAYER_SYNC, LOSS_TYPE, PREFIX

_WORD = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_CORE = {PREFIX.rstrip("_"), LAYER_SYNC, LOSS_TYPE, *ALIASES, "auto", "core", "config", "family", "model"}
"""Names that core's settings and commands use."""


def check_family(name: str, classes: Collection[str] = ()) -> None:
    """Refuse a name that a new family cannot have.

    Args:
        name: The family's id.
        classes: Names of the model's class and its bases: a package may provide a family that LayerSync refuses, if its
            model belongs to that family.

    Raises:
        ConfigError: The name isn't a valid identifier, or it is taken.
    """
    _check_word(name, "a family")
    if name in KNOWN:
        raise ConfigError(f"the name {name} is taken: {KNOWN[name].models} has the adapter {distribution_of(name)}")
    if name in REFUSALS and not {*REFUSALS[name].classes} & {*classes}:
        raise ConfigError(
            f"the name {name} is taken: LayerSync refuses {REFUSALS[name].models} under it, and "
            f"{next(iter(classes), 'this model')} isn't one of them"
        )
    if name in _plugins():
        raise ConfigError(f"the name {name} is taken by {_plugins()[name]}, a regularizer")
    _check_installed(name, GROUP, distribution_of(name))


def check_regularizer(name: str, keys: Collection[str] = ()) -> None:
    """Refuse a name that a new regularizer cannot have.

    Args:
        name: Its name, which is the prefix of its settings.
        keys: Existing settings of LayerSync, of installed plugins and of commands.

    Raises:
        ConfigError: The name isn't a valid identifier, or it is taken.
    """
    _check_word(name, "a regularizer")
    if name in REFUSALS or name in KNOWN:
        models = (REFUSALS.get(name) or KNOWN[name]).models
        raise ConfigError(f"the name {name} is taken by a model family, {models}; choose another one")
    if name in _plugins():
        raise ConfigError(f"the name {name} is taken by {_plugins()[name]}; choose another one")
    if taken := sorted(key for key in keys if key.startswith(f"{name}_") or key == name):
        raise ConfigError(
            f"settings of {name} begin with {name}_, but there is a setting {taken[0]}; choose another name"
        )
    _check_installed(name, PLUGINS, plugin_distribution(name))


def plugin_distribution(name: str) -> str:
    """Return the name of the distribution of a regularizer."""
    return f"layersync-plugin-{name.replace('_', '-')}"


def class_name(name: str) -> str:
    """Return the class name for a name in snake case."""
    return "".join(part.capitalize() for part in name.split("_"))


def _check_word(name: str, what: str) -> None:
    if not _WORD.fullmatch(name):
        better = re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
        such = f"; did you mean {better}?" if _WORD.fullmatch(better) else ", such as my_model"
        raise ConfigError(f"{name!r} cannot be the name of {what}: use lower-case letters, digits and _{such}")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise ConfigError(f"{name} cannot be the name of {what}: it is a Python keyword")
    title = class_name(name)
    if keyword.iskeyword(title) or title in dir(layersync_core):
        raise ConfigError(f"{name} cannot be the name of {what}: its class would be called {title}, like another one")
    if name in _CORE or name.startswith(PREFIX):
        raise ConfigError(f"{name} cannot be the name of {what}: layersync itself uses it")


def _plugins() -> Mapping[str, str]:
    """Return ``name -> its owner`` for this project's plugins and commands, installed or not."""
    commands = {name: f"the command {name} of {distribution}" for name, distribution in PLUGIN_COMMANDS.items()}
    return {**commands, **{name: f"the plugin {distribution}" for name, distribution in KNOWN_PLUGINS.items()}}


def _check_installed(name: str, group: str, distribution: str) -> None:
    for found in providers(group):
        if found.name == name:
            raise ConfigError(f"the name {name} is taken: {found} is installed and provides it")
    try:
        version = importlib_metadata.version(distribution)
    except importlib_metadata.PackageNotFoundError:
        return
    raise ConfigError(f"the name {name} is taken: a distribution {distribution} {version} is installed")
