"""Plugins: the hooks they may implement, and loading them one by one.

pluggy's own loader imports every plugin at once and dies with the first that is broken, so the entry points are
iterated here; a plugin that fails is remembered with its error and harms nobody.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import pluggy

from layersync_core.entrypoints import Provider, describe_failure, providers

if TYPE_CHECKING:
    from pydantic import BaseModel

    from layersync_core.config import LayerSyncConfig
    from layersync_core.protocol import Regularizer

GROUP = "layersync.plugins"
hookspec = pluggy.HookspecMarker("layersync")
hookimpl = pluggy.HookimplMarker("layersync")


class Hooks:
    """What a plugin may implement, as functions of its module marked with ``hookimpl``."""

    @hookspec
    def layersync_regularizers(self, config: LayerSyncConfig) -> Sequence[Regularizer]:  # type: ignore[empty-body]
        """Return the regularizers that the configuration enables; ``config.given`` has every key of the user."""

    @hookspec
    def layersync_config_models(self) -> Sequence[type[BaseModel]]:  # type: ignore[empty-body]
        """Return the pydantic models of the keys the plugin claims."""

    @hookspec
    def layersync_commands(self, app: Any) -> None:
        """Register commands on the ``typer.Typer`` application."""


class Plugins:
    """The loaded plugins, and the broken ones with their errors."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("layersync")
        self.manager.add_hookspecs(Hooks)
        self.broken: list[str] = []
        # LayerSync comes in through the same door as any other regularizer.
        from layersync_core import layersync

        self.manager.register(layersync, name="layersync")
        for found in providers(GROUP):
            if found.allowed:
                self._load(found)

    def _load(self, found: Provider) -> None:
        try:
            self.manager.register(found.load(), name=str(found))
        except (Exception, SystemExit) as error:  # a module that is a script exits
            self.broken.append(f"{found}: {describe_failure(error)}")

    def _ask(self, hook: str, **arguments: Any) -> list[Any]:
        """Return what each plugin answers, LayerSync first; one that fails joins the broken."""
        answers = []
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            try:
                answers.append(implementation.function(*(arguments[name] for name in implementation.argnames)))
            except Exception as error:
                self.broken.append(f"{implementation.plugin_name}: {describe_failure(error)}")
        return [answer for answer in answers if answer is not None]

    def regularizers(self, config: LayerSyncConfig) -> list[Regularizer]:
        """Return the enabled regularizers in the order their terms are computed."""
        groups = self.manager.hook.layersync_regularizers(config=config)
        return sorted((item for group in groups for item in group), key=lambda item: (item.order, item.name))

    def config_models(self) -> list[type[BaseModel]]:
        """Return the pydantic models of every claimed key, LayerSync's first."""
        return [model for group in self._ask("layersync_config_models") for model in group]

    def register_commands(self, app: Any) -> None:
        """Let every plugin register its commands on the ``typer.Typer`` application."""
        self._ask("layersync_commands", app=app)


@cache
def plugins() -> Plugins:
    """Return the plugins of this process, loaded on first use."""
    return Plugins()
