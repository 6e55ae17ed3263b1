"""quiet_tokens as a LayerSync plugin: its settings, and the hooks by which layersync finds it.

Every layersync command reads this module, so it does not import torch; the loss is in ``loss``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from layersync_core import LayerSyncConfig, Regularizer, Weight, hookimpl
from pydantic import BaseModel, Field

Positive = Annotated[Weight, Field(gt=0, allow_inf_nan=False)]


class QuietTokensConfig(BaseModel):
    """The keys of this plugin; each begins with ``quiet_tokens_``."""

    quiet_tokens_enabled: bool = Field(False, description="pull back tokens of one block whose norm stands out")
    quiet_tokens_block: Annotated[int, Field(ge=1)] = Field(1, description="the block; 1 is the first")
    quiet_tokens_lambda: Positive = Field(0.01, description="weight of the term")
    quiet_tokens_limit: Annotated[float, Field(ge=1)] = Field(
        2.0, description="norm, as a multiple of the mean norm, up to which a token is left alone"
    )
    quiet_tokens_warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="optimiser steps over which the weight rises from 0"
    )


@hookimpl
def layersync_config_models() -> Sequence[type[BaseModel]]:
    """Return the models of the keys that this plugin claims."""
    return [QuietTokensConfig]


@hookimpl
def layersync_regularizers(config: LayerSyncConfig) -> Sequence[Regularizer]:
    """Return new regularizers for every attached model; none while the switch is off."""
    settings = config.of(QuietTokensConfig)
    if settings is None:
        return []
    from layersync_plugin_quiet_tokens.loss import QuietTokens

    return [QuietTokens(settings)]
