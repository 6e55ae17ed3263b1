"""Plugins, loaded one by one.

pluggy's own loader imports every plugin at once and dies with the first that is broken, so the entry points are
iterated here; a plugin that fails is remembered with its error and harms nobody.
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
        builtins: Modules of our own that come in through the same door, before all others.
    """

    def __init__(self, builtins: Sequence[ModuleType] = ()) -> None:
        self.manager = pluggy.PluginManager("layersync")
        self.manager.add_hookspecs(Hooks)
        self.broken: dict[str, str] = {}
        self._told: set[tuple[str, str]] = set()
        # Third parties' plugins by their names in messages, and what each models its keys with.
        self._entries: dict[str, Provider] = {}
        self._claims: dict[str, list[Any]] = {}
        self._reserved: dict[str, list[Any]] = {}
        for module in builtins:
            self.manager.register(module, name=module.__name__.rpartition(".")[2])
        # Ours come first, so that what two of them bring is not taken from them.
        for found in sorted(providers(PLUGINS), key=lambda found: not found.is_ours):
            self._entries[name := f"{found} ({found.name})"] = found
            if found.name == _OWN:
                self.broken[name] = f"its entry point is called {_OWN}, as LayerSync itself; rename it"
            elif found.allowed:
                self._load(found, name)

    def _load(self, found: Provider, name: str) -> None:
        try:
            self.manager.register(plugin := found.load(), name=name)
            claims.check_plugin(plugin, self.manager)
        except Exception as error:
            self.broken[name] = describe_failure(error)
            if self.manager.has_plugin(name):  # refused half-way, for a hook with wrong arguments
                self.manager.unregister(name=name)

    def working(self, hook: str) -> list[Any]:
        """Return the implementations of a hook, built-in ones first, without those of plugins that are broken."""
        found = getattr(self.manager.hook, hook).get_hookimpls()
        order = {name: number for number, name in enumerate(self._entries)}
        return sorted(
            (implementation for implementation in found if implementation.plugin_name not in self.broken),
            key=lambda implementation: order.get(implementation.plugin_name, -1),
        )

    def _claimed(self) -> dict[str, list[type[BaseModel]]]:
        """Return the models of each plugin; one whose models cannot be used joins the broken."""
        for implementation in self.working("layersync_config_models"):
            name = implementation.plugin_name
            if name in self._claims:
                continue
            try:
                with foreign():
                    models = list(implementation.function() or ())
                    self._claims[name] = list(filter(claims.is_model, models))
                    if name in self._entries:  # ours are right
                        claims.check_models(models)
            except Exception as error:
                self.broken[name] = describe_failure(error)
        working = {name: models for name, models in self._claims.items() if name not in self.broken}
        ours = {name for name in working if name not in self._entries or self._entries[name].is_ours}
        self.broken |= (clashing := claims.clashes({**self._reserved, **working}, {*self._reserved, *ours}))
        return {name: models for name, models in working.items() if name not in clashing}

    def reserve(self, owner: str, model: type[BaseModel]) -> None:
        """Keep the keys of a program's own settings from plugins; one that claims such a key joins the broken.

        Args:
            owner: What to call the program.
            model: Its settings.
        """
        self._reserved[owner] = [model]

    def _offered(self, hook: str, config: LayerSyncConfig, check: Callable[[Any], None]) -> dict[str, list[Any]]:
        """Return what every plugin offers; one that fails is left out, unless the configuration asks for it.

        Args:
            hook: Name of the hook.
            config: Settings.
            check: Raises ConfigError where what is offered is not of the protocol.

        Raises:
            ConfigError: A plugin that is asked for fails, or a plugin says what is wrong with its settings.
        """
        offered: dict[str, list[Any]] = {}
        failing: dict[str, str] = {}  # of this configuration: with another one they may work
        for implementation in self.working(hook):
            name = implementation.plugin_name
            try:
                with foreign():
                    offered[name] = list(implementation.function(*(config for _ in implementation.argnames)) or ())
            except Exception as error:
                # What a plugin says of settings that are given is for whoever gave them.
                said = isinstance(error, LayerSyncError) and self._is_configured(name, config.given)
                if name not in self._entries or said:
                    raise
                failing[name] = self._failure(name, config, error)
                continue
            if name not in self._entries:  # one of our own
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
        """Return the switches of a plugin with their defaults; none of them is LayerSync's."""
        switches: dict[str, Any] = {f"{self._entries[name].name}{SWITCH}": False} if name in self._entries else {}
        for model in self._claims.get(name, ()):
            if key := switch_of(model):
                switches[key] = model.model_fields[key].default
        return {key: default for key, default in switches.items() if key != PREFIX + "enabled"}

    def _asked(self, name: str, given: Mapping[str, Any]) -> str:
        """Return the switch of a plugin that is on, and that asks for no other plugin; empty where there is none."""
        others = [models for other, models in self._claimed().items() if other != name]
        taken = {switch_of(model) for models in others for model in models}
        return next((key for key in sorted({*self._switches(name)} - taken) if is_on(given.get(key))), "")

    def _is_configured(self, name: str, given: Mapping[str, Any]) -> bool:
        prefixes = tuple(key.removesuffix("enabled") for key in self._switches(name))
        return any(key.startswith(prefixes) for key in given)

    def _tell(self, broken: Mapping[str, str]) -> None:
        """Say once in one line which plugins are left out since they fail, and why."""
        failures: dict[str, list[str]] = {}
        for name, failure in broken.items():
            if (name, failure) not in self._told:
                failures.setdefault(failure, []).append(name)
                self._told.add((name, failure))
        for failure, names in failures.items():
            be = "is" if len(names) == 1 else "are"
            log.warning("plugin %s %s left out: %s", " and ".join(names), be, failure)

    def require(self, given: Mapping[str, Any]) -> None:
        """Refuse settings that switch on a plugin which is not there.

        Args:
            given: Settings as ``canonical`` gives them.

        Raises:
            ConfigError: One enables a plugin that is broken, left out or, where it is known, not installed.
        """
        self._claimed()
        missing = self._missing()
        asked = [(self._asked(name, given), reason) for name, reason in missing.items()]
        present = {found.name for found in self._entries.values()}
        for name, distribution in KNOWN_PLUGINS.items():
            if name not in present and is_on(given.get(key := f"{name}{SWITCH}")):
                asked.append((key, f"its plugin is not installed: pip install {distribution}"))
        for key, reason in asked:
            if key:
                raise ConfigError(f"{key} is set, but {reason}")

    def regularizers(self, config: LayerSyncConfig) -> list[Regularizer]:
        """Return the enabled regularizers in the order their terms are computed.

        Raises:
            ConfigError: The configuration enables one whose plugin is broken, left out or, where it is known, absent.
        """
        self.require(config.given)
        self.check_spelling(config.given)
        for model in self.config_models():
            if model is not LayerSyncConfig and is_on(config.given.get(switch_of(model) or "")):
                config.of(model)  # for an unknown key, if the plugin itself does not ask
        offered = self._offered("layersync_regularizers", config, claims.check_regularizer)
        objectives = {implementation.plugin_name for implementation in self.working("layersync_objectives")}
        silent = {name: self._switches(name) for name in offered if name not in objectives and name in self._entries}
        claims.refuse_silent(offered, silent, config.given)
        items = sorted((item for group in offered.values() for item in group), key=lambda item: (item.order, item.name))
        names = [item.name for item in items]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"two regularizers are called {' and '.join(twice)}; uninstall one of their plugins, or leave it out "
                f"with {LOAD_VARIABLE}"
            )
        return items

    def check_spelling(self, given: Mapping[str, Any]) -> None:
        """Refuse keys of plugins that are spelt so that nobody reads them.

        Args:
            given: Settings as ``canonical`` gives them.

        Raises:
            ConfigError: There is such a key.
        """
        for prefix in self.prefixes():
            refuse_other_case(given, prefix)

    def prefixes(self) -> set[str]:
        """Return the prefixes of the keys of plugins, of those as well that are known or left out but not loaded."""
        switches = filter(None, map(switch_of, self.config_models()))
        return {*(switch.removesuffix("enabled") for switch in switches), *self.absent_prefixes()} - {PREFIX}

    def absent_prefixes(self) -> set[str]:
        """Return the prefixes of the keys of plugins that are known or installed but not loaded."""
        missing = self._missing()
        there = {f"{found.name}_" for name, found in self._entries.items() if name not in missing}
        there |= {(switch_of(model) or "").removesuffix("enabled") for model in self.config_models()}
        switches = [key for name in missing for key in self._switches(name)]
        return {*(key.removesuffix("enabled") for key in switches), *(f"{name}_" for name in KNOWN_PLUGINS)} - there

    def objective(self, config: LayerSyncConfig) -> Objective | None:
        """Return the enabled objective, new each time; None where the main loss stays what it is.

        Raises:
            ConfigError: Two are enabled.
        """
        offered = self._offered("layersync_objectives", config, claims.check_objective)
        items = sorted((item for group in offered.values() for item in group), key=lambda item: item.name)
        if len(items) > 1:
            raise ConfigError(
                f"objectives {' and '.join(item.name for item in items)} are enabled, and each would replace the main "
                "loss; switch all but one of them off"
            )
        return items[0] if items else None

    def config_models(self) -> list[type[BaseModel]]:
        """Return the pydantic models of every claimed key, the built-in ones' first."""
        return [model for models in self._claimed().values() for model in models]

    def missing(self) -> str:
        """Return why plugins are not there, in one clause; empty when all are."""
        return "; ".join(self._missing().values())

    def _missing(self) -> dict[str, str]:
        broken = {name: f"plugin {name} cannot be used: {failure}" for name, failure in self.broken.items()}
        left_out = [name for name, found in self._entries.items() if not found.allowed and name not in broken]
        return broken | {name: f"{LOAD_VARIABLE} leaves out plugin {name}; add it there" for name in left_out}


@cache
def third_parties() -> Plugins:
    """Return the installed plugins without the built-in ones, which need torch; loaded on first use."""
    return Plugins()
