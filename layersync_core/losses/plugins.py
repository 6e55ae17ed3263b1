"""Plugins, loaded one by one.

pluggy's own loader imports every plugin at once and dies with the first that is broken, so the entry points are
iterated here; a plugin that fails is remembered with its error and harms nobody.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pluggy

from layersync_core.config import LayerSyncConfig, switch_of
from layersync_core.entrypoints import KNOWN_PLUGINS, LOAD_VARIABLE, PLUGINS, Provider, describe_failure, providers
from layersync_core.errors import ConfigError, LayerSyncError
from layersync_core.losses.hookspecs import Hooks
from layersync_core.spelling import PREFIX, is_on, refuse_other_case

if TYPE_CHECKING:
    from pydantic import BaseModel

    from layersync_core.objective import Objective
    from layersync_core.protocol import Regularizer


log = logging.getLogger(__name__)

_SLOW = 5
"""Seconds from which it is said that a plugin takes long to load."""


class Plugins:
    """The loaded plugins, and the broken ones with their errors.

    Args:
        builtins: Modules of our own that come in through the same door, before all others.
    """

    def __init__(self, builtins: Sequence[ModuleType] = ()) -> None:
        self.manager = pluggy.PluginManager("layersync")
        self.manager.add_hookspecs(Hooks)
        self.broken: dict[str, str] = {}
        self._entries: dict[str, str] = {}
        self._left_out: list[str] = []
        for module in builtins:
            self.manager.register(module, name=module.__name__.rpartition(".")[2])
        for found in providers(PLUGINS):
            self._entries[name := f"{found} ({found.name})"] = found.name
            if found.allowed:
                self._load(found, name)
            else:
                self._left_out.append(name)

    def _load(self, found: Provider, name: str) -> None:
        started = time.monotonic()
        try:
            with redirect_stdout(sys.stderr):  # a program's output is its own
                self.manager.register(found.load(), name=name)
        except (Exception, SystemExit) as error:  # a module that is a script exits
            self.broken[name] = describe_failure(error)
            if self.manager.has_plugin(name):  # refused half-way, for a hook with wrong arguments
                self.manager.unregister(name=name)
        took = time.monotonic() - started
        if took > _SLOW:
            log.warning("plugin %s took %.0f s to load; %s leaves it out", name, took, LOAD_VARIABLE)

    def _ask(self, hook: str, beginning: str = "", **arguments: Any) -> list[Any]:
        """Return what each plugin answers whose name begins so, built-in ones first; a failing one joins the broken."""
        answers = []
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            if not implementation.plugin_name.startswith(beginning):
                continue
            try:
                answers.append(implementation.function(*(arguments[name] for name in implementation.argnames)))
            except (Exception, SystemExit) as error:
                self.broken[implementation.plugin_name] = describe_failure(error)
        return [answer for answer in answers if answer is not None]

    def _offered(self, hook: str, config: LayerSyncConfig, members: Sequence[str]) -> list[Any]:
        """Return what every plugin offers; one that fails is left out, unless the configuration asks for it.

        Args:
            hook: Name of the hook.
            config: Settings.
            members: What each thing that is offered must have.

        Raises:
            ConfigError: A plugin that is asked for fails, or a plugin says what is wrong with its settings.
        """
        offered: list[Any] = []
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            name = implementation.plugin_name
            try:
                items = list(implementation.function(*(config for _ in implementation.argnames)) or ())
                for item in items:
                    if lacking := [member for member in members if not hasattr(item, member)]:
                        raise TypeError(f"{hook} returned a {type(item).__name__} without {', '.join(lacking)}")
            except LayerSyncError:
                raise
            except (Exception, SystemExit) as error:
                if name not in self._entries:  # one of our own
                    raise
                self.broken[name] = failure = describe_failure(error)
                if self._is_asked_for(name, config):
                    raise ConfigError(f"plugin {name} is switched on, but it fails: {failure}") from error
                log.warning("plugin %s is left out, since it fails: %s", name, failure)
                continue
            offered += items
        return offered

    def _is_asked_for(self, name: str, config: LayerSyncConfig) -> bool:
        keys: list[str | None] = [f"{self._entries[name]}_enabled"]
        for implementation in self.manager.hook.layersync_config_models.get_hookimpls():
            if implementation.plugin_name == name:
                with suppress(Exception, SystemExit):
                    models: Any = implementation.function()
                    keys += map(switch_of, models)
        return any(is_on(config.given.get(key or "")) for key in keys)

    def regularizers(self, config: LayerSyncConfig) -> list[Regularizer]:
        """Return the enabled regularizers in the order their terms are computed.

        Raises:
            ConfigError: The configuration enables one whose plugin is broken, left out or, where it is known, absent.
        """
        for name, reason in self._missing().items():
            if is_on(config.given.get(key := f"{self._entries.get(name)}_enabled")):
                raise ConfigError(f"{key} is set, but {reason}")
        for name, distribution in KNOWN_PLUGINS.items():
            missing = name not in self._entries.values()
            if missing and is_on(config.given.get(key := f"{name}_enabled")):
                raise ConfigError(f"{key} is set, but its plugin is not installed: pip install {distribution}")
        self.check_spelling(config.given)
        for model in self.config_models():
            if model is not LayerSyncConfig and is_on(config.given.get(switch_of(model) or "")):
                config.of(model)  # for an unknown key, if the plugin itself does not ask
        offered = self._offered("layersync_regularizers", config, ("name", "order", "layers", "compute"))
        items = sorted(offered, key=lambda item: (item.order, item.name))
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
        loaded = {*self._entries.values()} - {self._entries.get(name) for name in (*self.broken, *self._left_out)}
        return {f"{name}_" for name in {*KNOWN_PLUGINS, *self._entries.values()} - loaded}

    def objective(self, config: LayerSyncConfig) -> Objective | None:
        """Return the enabled objective, new each time; None where the main loss stays what it is.

        Raises:
            ConfigError: Two are enabled.
        """
        offered = self._offered("layersync_objectives", config, ("name", "compute"))
        items = sorted(offered, key=lambda item: item.name)
        if len(items) > 1:
            raise ConfigError(
                f"objectives {' and '.join(item.name for item in items)} are enabled, and each would replace the main "
                "loss; switch all but one of them off"
            )
        return items[0] if items else None

    def config_models(self) -> list[type[BaseModel]]:
        """Return the pydantic models of every claimed key, the built-in ones' first."""
        return [model for group in self._ask("layersync_config_models") for model in group]

    def missing(self) -> str:
        """Return why plugins are not there, in one clause; empty when all are."""
        return "; ".join(self._missing().values())

    def _missing(self) -> dict[str, str]:
        broken = {name: f"plugin {name} could not be loaded: {failure}" for name, failure in self.broken.items()}
        return broken | {name: f"{LOAD_VARIABLE} leaves out plugin {name}; add it there" for name in self._left_out}

    def register_commands(self, app: Any, distribution: str | None = None) -> None:
        """Let every plugin register its commands on the ``typer.Typer`` application.

        Args:
            app: The application.
            distribution: Ask the plugins of this one alone.
        """
        self._ask("layersync_commands", f"{distribution} " if distribution else "", app=app)


@cache
def third_parties() -> Plugins:
    """Return the installed plugins without the built-in ones, which need torch; loaded on first use."""
    return Plugins()
