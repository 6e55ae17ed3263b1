"""TwinFlow (arXiv 2512.05150): a main loss for samples in few steps, for ``layersync train``.

Nothing heavy is imported here, since every ``layersync`` command imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from layersync_core import hookimpl

if TYPE_CHECKING:
    from pydantic import BaseModel

    from layersync_core import LayerSyncConfig, Objective
    from layersync_plugin_twinflow.loss import Draws, Rule, twinflow_loss
    from layersync_plugin_twinflow.sampling import few_steps
    from layersync_plugin_twinflow.saving import load_twinflow

__all__ = ["Draws", "Rule", "few_steps", "load_twinflow", "twinflow_loss"]

_LOADED_LATER = {
    **dict.fromkeys(("Draws", "Rule", "twinflow_loss"), "loss"),
    "few_steps": "sampling",
    "load_twinflow": "saving",
}


@hookimpl
def layersync_config_models() -> Sequence[type[BaseModel]]:
    """Claim the ``twinflow_*`` keys."""
    from layersync_plugin_twinflow.config import TwinFlowConfig

    return [TwinFlowConfig]


@hookimpl
def layersync_objectives(config: LayerSyncConfig) -> Sequence[Objective]:
    """Return TwinFlow when it is enabled.

    Raises:
        ConfigError: CREPA's feature source is ``self_flow``, which has a teacher of its own.
    """
    from layersync_core import ConfigError, is_on
    from layersync_plugin_twinflow.config import TwinFlowConfig

    settings = config.of(TwinFlowConfig)
    if settings is None:
        return []
    source = str(config.given.get("crepa_feature_source") or "").strip().lower()
    if is_on(config.given.get("crepa_self_flow")) or source in ("self_flow", "selfflow"):
        raise ConfigError(
            "twinflow_enabled and crepa_feature_source self_flow exclude each other: both control the noise and the "
            "times of a step; use crepa_feature_source: backbone or encoder"
        )
    from layersync_plugin_twinflow.objective import TwinFlow

    return [TwinFlow(settings)]


def __getattr__(name: str) -> Any:
    if name not in _LOADED_LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LOADED_LATER[name]}"), name)
