"""CREPA, cross-frame representation alignment (arXiv 2506.09229), on the states that LayerSync captures.

Nothing heavy is imported here, since every ``layersync`` command imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layersync_core import hookimpl

if TYPE_CHECKING:
    from pydantic import BaseModel

    from layersync_core import LayerSyncConfig, Regularizer
    from layersync_plugin_crepa.loss import crepa_loss

__all__ = ["crepa_loss"]


@hookimpl
def layersync_config_models() -> Sequence[type[BaseModel]]:
    """Claim the ``crepa_*`` keys."""
    from layersync_plugin_crepa.config import CrepaConfig

    return [CrepaConfig]


@hookimpl
def layersync_regularizers(config: LayerSyncConfig) -> Sequence[Regularizer]:
    """Return CREPA when it is enabled."""
    from layersync_plugin_crepa.config import CrepaConfig

    settings = config.of(CrepaConfig)
    if settings is None:
        return []
    from layersync_plugin_crepa.regularizer import Crepa

    return [Crepa(settings, config.given.get("max_train_steps"))]


def __getattr__(name: str) -> Any:
    if name != "crepa_loss":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from layersync_plugin_crepa.loss import crepa_loss

    return crepa_loss
