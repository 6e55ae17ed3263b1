"""The hooks that a plugin may implement. Imports no torch, since every ``layersync`` command reads plugins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from pydantic import BaseModel

    from layersync_core.config import LayerSyncConfig
    from layersync_core.objective import Objective
    from layersync_core.protocol import Regularizer

hookspec = pluggy.HookspecMarker("layersync")
hookimpl = pluggy.HookimplMarker("layersync")


class Hooks:
    """What a plugin may implement, as functions of its module marked with ``hookimpl``."""

    @hookspec
    def layersync_regularizers(self, config: LayerSyncConfig) -> Sequence[Regularizer]:  # type: ignore[empty-body]
        """Return the regularizers that the configuration enables; ``config.given`` has every key of the user."""

    @hookspec
    def layersync_objectives(self, config: LayerSyncConfig) -> Sequence[Objective]:  # type: ignore[empty-body]
        """Return the objectives that the configuration enables, new ones for every model.

        An objective replaces the main loss of ``layersync train``. ``attach`` and ``layersync run`` add to the loss of
        somebody else's program, so they refuse a configuration that enables one.
        """

    @hookspec
    def layersync_config_models(self) -> Sequence[type[BaseModel]]:  # type: ignore[empty-body]
        """Return the pydantic models of the keys the plugin claims."""

    @hookspec
    def layersync_commands(self, app: Any) -> None:
        """Register commands on the ``typer.Typer`` application."""
