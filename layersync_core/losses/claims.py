"""Check what plugins bring: that their hooks exist, their keys are free, and their objects follow the protocol."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from pluggy import PluginManager
from pydantic import BaseModel, ConfigDict

from layersync_core.config import switch_of, validate
from layersync_core.entrypoints import LOAD_VARIABLE
from layersync_core.errors import ConfigError, did_you_mean
from layersync_core.losses.hookspecs import Hooks
from layersync_core.losses.members import refuse_near_misses
from layersync_core.objective import OPTIONAL, Objective, ObjectiveBase
from layersync_core.protocol import API_VERSION, Regularizer
from layersync_core.spelling import ALIASES, LOSS_TYPE, PREFIX, is_on

# Everything that begins with the prefix is taken as well.
_TAKEN = {*ALIASES, LOSS_TYPE, "command", "config", "family", "help", "model", "plain"}
"""Other spellings of LayerSync's keys, and the parameters of its commands."""

ONLY_TRAINED_HERE = (
    "objective {} replaces the main loss, which attach() and layersync run leave to the program; only layersync train "
    "can run it: use that, or switch it off"
)


def check_plugin(plugin: Any, manager: PluginManager) -> None:
    """Refuse a registered plugin whose functions would never be called.

    Raises:
        ConfigError: It is written for another API, implements no hook, or one that does not exist.
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
            raise ConfigError(f"it implements {hook.name}, which isn't a hook; {did_you_mean(hook.name, known)}")


def is_model(model: Any) -> bool:
    """Return whether something is a pydantic model."""
    return isinstance(model, type) and issubclass(model, BaseModel)


def check_models(models: Sequence[Any]) -> None:
    """Refuse models of a plugin with which commands and configurations could not be read.

    Raises:
        ConfigError: One isn't a pydantic model, claims a key that plugins may not have, or cannot be built without
            settings; anything else that its own validators raise propagates.
    """
    for model in models:
        if not is_model(model):
            raise ConfigError(f"layersync_config_models returned {model!r}, which isn't a pydantic model")
        if taken := [key for key in model.model_fields if key.startswith(PREFIX) or key in _TAKEN]:
            raise ConfigError(f"{model.__name__} claims {', '.join(taken)}, which a plugin may not use; rename it")
        # Pydantic does not validate defaults by itself, but a plugin that is off has nothing else.
        validate(type(model.__name__, (model,), {"model_config": ConfigDict(validate_default=True)}), {})


def clashes(claims: Mapping[str, Sequence[type[BaseModel]]], ours: Collection[str]) -> dict[str, str]:
    """Return the message for each plugin that claims another plugin's key.

    A key with the prefix of a plugin's switch belongs to that plugin, claimed or not, since ``LayerSyncConfig.of``
    would refuse the key as unknown while that plugin is on.

    Args:
        claims: The models of each plugin.
        ours: The plugins of this project, which keep their keys.
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
    """Refuse what a plugin brings while it is switched off, or under a name that is taken.

    Args:
        name: The plugin.
        offered: What this plugin and those before it bring.
        switches: Its switches and their defaults.
        given: The settings.

    Raises:
        ConfigError: The plugin is off, or the name is taken.
    """
    if offered[name] and not any(is_on(given.get(key, default)) for key, default in switches.items()):
        raise ConfigError(f"it brings {offered[name][0].name}, though {' and '.join(switches)} is off")
    taken = {item.name: other for other, items in offered.items() if other != name for item in items}
    taken.setdefault(PREFIX.rstrip("_"), "LayerSync")
    for item in offered[name]:
        if item.name in taken:
            raise ConfigError(f"it uses the name {item.name}, as {taken[item.name]} does")


def refuse_silent(
    offered: Mapping[str, Sequence[Any]], switches: Mapping[str, Collection[str]], given: Mapping[str, Any]
) -> None:
    """Refuse a switch that is on although its plugin brings nothing.

    Args:
        offered: What each plugin brings.
        switches: The switches of each plugin that has no objective.
        given: The settings.

    Raises:
        ConfigError: There is such a switch.
    """
    for name, keys in switches.items():
        for key in filter(lambda key: is_on(given.get(key)), keys):
            if not any(offered[other] for other, its in switches.items() if key in its):
                raise ConfigError(f"{key} is set, but plugin {name} brings no regularizer, so it would do nothing")


def check_regularizer(item: Any) -> None:
    """Refuse anything but a regularizer.

    Raises:
        ConfigError: It lacks a member, or one is of another type.
    """
    _check_members(item, {"name": str, "order": int, "layers": Callable, "compute": Callable})


def check_objective(item: Any) -> None:
    """Refuse anything but an objective.

    Raises:
        ConfigError: It lacks a member, one is of another type, or one has nearly the name of an optional member.
    """
    _check_members(item, {"name": str, "compute": Callable})
    refuse_near_misses(item, "objective", ObjectiveBase, OPTIONAL)


def refuse_same_names(items: Sequence[Regularizer]) -> None:
    """Refuse regularizers whose metrics could not be told apart.

    Raises:
        ConfigError: Two of them have the same name.
    """
    names = [item.name for item in items]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"two regularizers are called {' and '.join(twice)}; uninstall one of their plugins, or leave it out "
            f"with {LOAD_VARIABLE}"
        )


def refuse_several(items: Sequence[Objective]) -> None:
    """Refuse more than one main loss.

    Raises:
        ConfigError: Two are enabled.
    """
    if len(items) > 1:
        raise ConfigError(
            f"objectives {' and '.join(item.name for item in items)} are enabled, and each would replace the main "
            "loss; switch all but one of them off"
        )


def _check_members(item: Any, members: Mapping[str, Any]) -> None:
    if lacking := [member for member in members if not hasattr(item, member)]:
        raise ConfigError(f"it returned {item!r}, which lacks {', '.join(lacking)}")
    for member, kind in members.items():
        if not isinstance(value := getattr(item, member), kind):
            raise ConfigError(f"{type(item).__name__}.{member} is {value!r}; expected {kind.__name__}")
