"""Plugins, loaded one by one.

pluggy's own loader imports every plugin at once and fails with the first broken one, so the entry points are iterated
here; a plugin that fails is recorded with its error and does not affect the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from layersync_core.config import LayerSyncConfig, switch_of
from layersync_core.entrypoints import (
    KNOWN_PLUGINS,
    LOAD_VARIABLE,
    PLUGINS,
    Provider,
    describe_failure,
    foreign,
    not_installed,
    providers,
)
from layersync_core.errors import ConfigError, LayerSyncError
from layersync_core.losses import claims
from layersync_core.losses.hookspecs import Hooks
from layersync_core.spelling import PREFIX, SWITCH, is_on, refuse_other_case

if TYPE_CHECKING:
    from pydantic import BaseModel

    from layersync_core.objective import Objective
    from layersync_core.protocol import Regularizer


log = logging.getLogger(__name__)

_OWN = PREFIX.rstrip("_")


class Plugins:
    """The loaded plugins, and the broken ones with their errors.

    Args:
        builtins: Built-in modules, registered like plugins and before all others.
    """

    def __init__(self, builtins: Sequence[ModuleType] = ()) -> None:
        self.manager = pluggy.PluginManager("layersync")
        self.manager.add_hookspecs(Hooks)
        self.broken: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()
        # Plugins of third parties by their names in messages, and the models of each one's keys.
        self._entries: dict[str, Provider] = {}
        self._claims: dict[str, list[Any]] = {}
        self._reserved: dict[str, list[Any]] = {}
        for module in builtins:
            self.manager.register(module, name=module.__name__.rpartition(".")[2])
        # This project's plugins come first, so that in a conflict they keep what they bring.
        for found in sorted(providers(PLUGINS), key=lambda found: not found.is_ours):
            self._entries[name := found.title] = found
            if found.name == _OWN:
                self.broken[name] = f"its entry point is called {_OWN}, like LayerSync itself; rename it"
            elif found.allowed:
                self._load(found, name)

    def _load(self, found: Provider, name: str) -> None:
        try:
            self.manager.register(plugin := found.load(), name=name)
            claims.check_plugin(plugin, self.manager)
        except Exception as error:
            self.broken[name] = describe_failure(error)
            if self.manager.has_plugin(name):  # refused halfway, for a hook with wrong arguments
                self.manager.unregister(name=name)

    def working(self, hook: str) -> list[Any]:
        """Return the implementations of a hook, built-in ones first, without those of broken plugins."""
        found = getattr(self.manager.hook, hook).get_hookimpls()
        order = {name: number for number, name in enumerate(self._entries)}
        return sorted(
            (implementation for implementation in found if implementation.plugin_name not in self.broken),
            key=lambda implementation: order.get(implementation.plugin_name, -1),
        )

    def _claimed(self) -> dict[str, list[type[BaseModel]]]:
        """Return the models of each plugin; a plugin whose models cannot be used becomes broken."""
        for implementation in self.working("layersync_config_models"):
            name = implementation.plugin_name
            if name in self._claims:
                continue
            try:
                with foreign():
                    models = list(implementation.function() or ())
                    self._claims[name] = list(filter(claims.is_model, models))
                    if name in self._entries:  # built-in ones need no check
                        claims.check_models(models)
            except Exception as error:
                self.broken[name] = describe_failure(error)
        working = {name: models for name, models in self._claims.items() if name not in self.broken}
        ours = {name for name in working if name not in self._entries or self._entries[name].is_ours}
        self.broken |= (clashing := claims.clashes({**self._reserved, **working}, {*self._reserved, *ours}))
        return {name: models for name, models in working.items() if name not in clashing}

    def reserve(self, owner: str, model: type[BaseModel]) -> None:
        """Reserve the keys of a program's own settings, called ``owner``: a plugin that claims one becomes broken."""
        self._reserved[owner] = [model]

    def _offered(self, hook: str, config: LayerSyncConfig, check: Callable[[Any], None]) -> dict[str, list[Any]]:
        """Return what every plugin offers; a plugin that fails is left out, unless the configuration asks for it.

        Args:
            hook: Name of the hook.
            config: Settings.
            check: Raises ConfigError where an offered object does not follow the protocol.

        Raises:
            ConfigError: A plugin that is asked for fails, or a plugin refuses its settings.
        """
        offered: dict[str, list[Any]] = {}
        failing: dict[str, str] = {}  # with this configuration; with another one they may work
        for implementation in self.working(hook):
            name = implementation.plugin_name
            try:
                with foreign():
                    offered[name] = list(implementation.function(*(config for _ in implementation.argnames)) or ())
            except Exception as error:
                # A plugin's complaint about settings that are given is for the user who gave them.
                said = isinstance(error, LayerSyncError) and self._is_configured(name, config.given)
                if name not in self._entries or said:
                    raise
                failing[name] = self._failure(name, config, error)
                continue
            if name not in self._entries:  # a built-in one
                continue
            try:
                with foreign():
                    for item in offered[name]:
                        check(item)
                    claims.check_offer(name, offered, self._switches(name), config.given)
            except Exception as error:
                del offered[name]
                failing[name] = self._failure(name, config, error)
        self._tell(self.broken | failing)
        return offered

    def _failure(self, name: str, config: LayerSyncConfig, error: Exception) -> str:
        failure = describe_failure(error)
        if self._asked(name, config.given):
            raise ConfigError(f"plugin {name} is switched on, but it fails: {failure}") from error
        return failure

    def _switches(self, name: str) -> dict[str, Any]:
        """Return the switches of a plugin with their defaults, without LayerSync's own."""
        switches: dict[str, Any] = {f"{self._entries[name].name}{SWITCH}": False} if name in self._entries else {}
        for model in self._claims.get(name, ()):
            if key := switch_of(model):
                switches[key] = model.model_fields[key].default
        return {key: default for key, default in switches.items() if key != PREFIX + "enabled"}

    def _asked(self, name: str, given: Mapping[str, Any]) -> str:
        """Return a switch that is on and belongs to this plugin only; empty where there is none."""
        others = [models for other, models in self._claimed().items() if other != name]
        taken = {switch_of(model) for models in others for model in models}
        return next((key for key in sorted({*self._switches(name)} - taken) if is_on(given.get(key))), "")

    def _is_configured(self, name: str, given: Mapping[str, Any]) -> bool:
        prefixes = tuple(key.removesuffix("enabled") for key in self._switches(name))
        return any(key.startswith(prefixes) for key in given)

    def _tell(self, broken: Mapping[str, str]) -> None:
        """Log once, in one line, which plugins are left out because they fail, and why."""
        failures: dict[str, list[str]] = {}
        for name, failure in broken.items():
            if (name, failure) not in self._told:
                failures.setdefault(failure, []).append(name)
                self._told.add((name, failure))
        for failure, names in failures.items():
            be = "is" if len(names) == 1 else "are"
            log.warning("plugin %s %s left out: %s", " and ".join(names), be, failure)

    def require(self, given: Mapping[str, Any]) -> None:
        """Refuse settings that switch on a plugin that isn't available.

        Args:
            given: Settings as ``canonical`` gives them.

        Raises:
            ConfigError: A setting enables a plugin that is broken, left out or, if it is a known one, not installed.
        """
        self._claimed()
        missing = self._missing()
        asked = [(self._asked(name, given), reason) for name, reason in missing.items()]
        present = {found.name for found in self._entries.values()}
        absent = {f"{name}{SWITCH}": not_installed(name) for name in KNOWN_PLUGINS if name not in present}
        asked += [(key, reason) for key, reason in absent.items() if is_on(given.get(key))]
        for key, reason in asked:
            if key:
                raise ConfigError(f"{key} is set, but {reason}")

    def refuse_objectives(self, given: Mapping[str, Any]) -> None:
        """Raise ConfigError where settings, as ``canonical`` gives them, switch on a plugin with only an objective."""
        for name in self.objectives_alone():
            if key := self._asked(name, given):
                raise ConfigError(f"{key} is set, but {claims.ONLY_TRAINED_HERE.format(key.removesuffix(SWITCH))}")

    def switched_on(self, given: Mapping[str, Any]) -> list[Provider]:
        """Return the plugins that settings, as ``canonical`` gives them, switch on."""
        own = {name: self._switches(name).items() for name, found in self._entries.items() if found.allowed}
        return [self._entries[name] for name in own if any(is_on(given.get(key, off)) for key, off in own[name])]

    def objectives_alone(self) -> list[str]:
        """Return the titles of the plugins that replace the main loss and add nothing to another one."""
        both = {implementation.plugin_name for implementation in self.working("layersync_regularizers")}
        names = [implementation.plugin_name for implementation in self.working("layersync_objectives")]
        return [name for name in names if name not in both]

    def owner_of(self, model: type[BaseModel]) -> Provider | None:
        """Return the plugin that claims a model's keys; None of a built-in one's, and of a program's."""
        return next((self._entries.get(name) for name, models in self._claimed().items() if model in models), None)

    def regularizers(self, config: LayerSyncConfig) -> list[Regularizer]:
        """Return the enabled regularizers in the order their terms are computed.

        Raises:
            ConfigError: The configuration enables one whose plugin is broken, left out or known and not installed.
        """
        self.require(config.given)
        self.check_spelling(config.given)
        for model in self.config_models():
            if model is not LayerSyncConfig and is_on(config.given.get(switch_of(model) or "")):
                config.of(model)  # refuses an unknown key, in case the plugin itself doesn't
        offered = self._offered("layersync_regularizers", config, claims.check_regularizer)
        objectives = {implementation.plugin_name for implementation in self.working("layersync_objectives")}
        silent = {name: self._switches(name) for name in offered if name not in objectives and name in self._entries}
        claims.refuse_silent(offered, silent, config.given)
        items = sorted((item for group in offered.values() for item in group), key=lambda item: (item.order, item.name))
        claims.refuse_same_names(items)
        return items

    def check_spelling(self, given: Mapping[str, Any]) -> None:
        """Raise ConfigError if a plugin's key, in settings from ``canonical``, has a spelling that is never read."""
        for prefix in self.prefixes():
            refuse_other_case(given, prefix)

    def prefixes(self) -> set[str]:
        """Return the prefixes of the plugins' keys, including those of known or excluded plugins that aren't loaded."""
        switches = filter(None, map(switch_of, self.config_models()))
        return {*(switch.removesuffix("enabled") for switch in switches), *self.absent_prefixes()} - {PREFIX}

    def ours(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of LayerSync and of plugins, including unknown ones with their prefixes.

        Args:
            given: Settings as ``canonical`` gives them, including keys of the host.
        """
        claimed = {name for model in self.config_models() for name in model.model_fields}
        prefixes = tuple({PREFIX, *self.prefixes()})
        return {key: value for key, value in given.items() if key.startswith(prefixes) or key in claimed}

    def absent_prefixes(self) -> set[str]:
        """Return the prefixes of the keys of plugins that are known or installed, but not loaded."""
        missing = self._missing()
        there = {f"{found.name}_" for name, found in self._entries.items() if name not in missing}
        there |= {(switch_of(model) or "").removesuffix("enabled") for model in self.config_models()}
        switches = [key for name in missing for key in self._switches(name)]
        return {*(key.removesuffix("enabled") for key in switches), *(f"{name}_" for name in KNOWN_PLUGINS)} - there

    def objective(self, config: LayerSyncConfig) -> Objective | None:
        """Return the enabled objective, new each time; None where the main loss stays as it is.

        Raises:
            ConfigError: Two are enabled.
        """
        offered = self._offered("layersync_objectives", config, claims.check_objective)
        items = sorted((item for group in offered.values() for item in group), key=lambda item: item.name)
        claims.refuse_several(items)
        return items[0] if items else None

    def config_models(self) -> list[type[BaseModel]]:
        """Return the pydantic models of all claimed keys, built-in ones first."""
        return [model for models in self._claimed().values() for model in models]

    def missing(self) -> str:
        """Return why plugins are missing, as one clause; empty when none is."""
        return "; ".join(self._missing().values())

    def _missing(self) -> dict[str, str]:
        broken = {name: f"plugin {name} cannot be used: {failure}" for name, failure in self.broken.items()}
        left_out = [name for name, found in self._entries.items() if not found.allowed and name not in broken]
        return broken | {name: f"{LOAD_VARIABLE} leaves out plugin {name}; add it there" for name in left_out}


@cache
def third_parties() -> Plugins:
    """Return the installed plugins without the built-in ones, which need torch; loaded on first use."""
    return Plugins()
