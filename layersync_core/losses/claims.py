"""What plugins bring: hooks that are called, keys that are nobody else's, and objects that are of the protocol."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pluggy import PluginManager
from pydantic import BaseModel, ConfigDict

from layersync_core.config import switch_of, validate
from layersync_core.entrypoints import LOAD_VARIABLE
from layersync_core.errors import ConfigError, did_you_mean
from layersync_core.losses.hookspecs import Hooks
from layersync_core.protocol import API_VERSION
from layersync_core.spelling import ALIASES, LOSS_TYPE, PREFIX, is_on

# Beside these, whatever begins with the prefix.
_TAKEN = {*ALIASES, LOSS_TYPE, "command", "config", "family", "help", "model", "plain"}
"""Other spellings of our keys, and what our commands call their own parameters."""


def check_plugin(plugin: Any, manager: PluginManager) -> None:
    """Refuse a plugin that was registered, but of which nothing would be called.

    Raises:
        ConfigError: It is written for another API, implements no hook, or one that there is not.
    """
    version = getattr(plugin, "api_version", API_VERSION)
    if version != API_VERSION:
        raise ConfigError(
            f"it is written for API {version!r}, this layersync-core for {API_VERSION}; install versions of both that "
            "match"
        )
    hooks = manager.get_hookcallers(plugin) or []
    if not hooks:
        raise ConfigError("it implements no hook; mark its functions with layersync_core.hookimpl")
    known = [name for name in vars(Hooks) if name.startswith(PREFIX)]
    for hook in hooks:
        if hook.name not in known:
            raise ConfigError(f"it implements {hook.name}, which is no hook; {did_you_mean(hook.name, known)}")


def is_model(model: Any) -> bool:
    """Return whether something is a pydantic model."""
    return isinstance(model, type) and issubclass(model, BaseModel)


def check_models(models: Sequence[Any]) -> None:
    """Refuse what a plugin returned for its models where commands and configurations could not be read with it.

    Raises:
        ConfigError: One is no pydantic model, claims a key that no plugin may have, or cannot be built without
            settings; what else its own validators raise comes through.
    """
    for model in models:
        if not is_model(model):
            raise ConfigError(f"layersync_config_models returned {model!r}, which is no pydantic model")
        if taken := [key for key in model.model_fields if key.startswith(PREFIX) or key in _TAKEN]:
            raise ConfigError(f"{model.__name__} claims {', '.join(taken)}, which is not a plugin's; rename it")
        # Pydantic looks at no default by itself, but a plugin that is off has nothing else.
        validate(type(model.__name__, (model,), {"model_config": ConfigDict(validate_default=True)}), {})


def clashes(claims: Mapping[str, Sequence[type[BaseModel]]], ours: Collection[str]) -> dict[str, str]:
    """Return what to say of each plugin that claims a key of another one.

    A key that begins as a plugin's switch does is that plugin's, claimed or not, since ``LayerSyncConfig.of`` would
    refuse the key as unknown while that plugin is on.

    Args:
        claims: The models of each plugin.
        ours: The plugins of this project, whose keys stay theirs.
    """
    prefixes = [
        (switch.removesuffix("enabled"), name)
        for name, models in claims.items()
        for model in models
        if (switch := switch_of(model))
    ]
    claiming: dict[str, list[str]] = {}
    for name, models in claims.items():
        for key in dict.fromkeys(key for model in models for key in model.model_fields):
            claiming.setdefault(key, []).append(name)
    found: dict[str, str] = {}
    for key, names in claiming.items():
        owners = dict.fromkeys(name for prefix, name in prefixes if key.startswith(prefix))
        others = [name for name in owners if name not in names]
        own = [name for name in names if name in owners]
        if len(involved := [*others, *names]) == 1:
            continue
        kept = [name for name in involved if name in ours] or others or (own if len(own) == 1 else [])
        failing = [name for name in involved if name not in kept]
        if kept:
            failure = f"it claims {key}, which belongs to {' and '.join(kept)}"
        else:
            failure = f"{' and '.join(failing)} claim {key}; uninstall all but one of them, or use {LOAD_VARIABLE}"
        found |= {name: failure for name in failing if name not in found}
    return found


def check_offer(
    name: str, offered: Mapping[str, Sequence[Any]], switches: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Refuse what a plugin brings while nobody has switched it on, or under a name that is taken.

    Args:
        name: The plugin.
        offered: What each plugin brings, those before it and itself.
        switches: Its switches and their defaults.
        given: The settings.

    Raises:
        ConfigError: It does.
    """
    if offered[name] and not any(is_on(given.get(key, default)) for key, default in switches.items()):
        raise ConfigError(f"it brings {offered[name][0].name}, though {' and '.join(switches)} is off")
    taken = {item.name: other for other, items in offered.items() if other != name for item in items}
    taken.setdefault(PREFIX.rstrip("_"), "LayerSync")
    for item in offered[name]:
        if item.name in taken:
            raise ConfigError(f"it calls what it brings {item.name}, as {taken[item.name]} does")


def refuse_silent(
    offered: Mapping[str, Sequence[Any]], switches: Mapping[str, Collection[str]], given: Mapping[str, Any]
) -> None:
    """Refuse a switch that is on and brings nothing.

    Args:
        offered: What each plugin brings.
        switches: Those of each plugin that brings nothing else.
        given: The settings.

    Raises:
        ConfigError: There is one.
    """
    for name, keys in switches.items():
        for key in filter(lambda key: is_on(given.get(key)), keys):
            if not any(offered[other] for other, its in switches.items() if key in its):
                raise ConfigError(f"{key} is set, but plugin {name} brings no regularizer, so it would do nothing")


def check_regularizer(item: Any) -> None:
    """Refuse what is no regularizer.

    Raises:
        ConfigError: It lacks a member, or one is of another type.
    """
    _check_members(item, {"name": str, "order": int, "layers": Callable, "compute": Callable})


def check_objective(item: Any) -> None:
    """Refuse what is no objective.

    Raises:
        ConfigError: It lacks a member, or one is of another type.
    """
    _check_members(item, {"name": str, "compute": Callable})


def _check_members(item: Any, members: Mapping[str, Any]) -> None:
    if lacking := [member for member in members if not hasattr(item, member)]:
        raise ConfigError(f"it returned {item!r}, which lacks {', '.join(lacking)}")
    for member, kind in members.items():
        if not isinstance(value := getattr(item, member), kind):
            raise ConfigError(f"{type(item).__name__}.{member} is {value!r}, which is no {kind.__name__}")
