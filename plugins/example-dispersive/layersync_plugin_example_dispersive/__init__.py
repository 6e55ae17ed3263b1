"""The Dispersive loss (arXiv 2506.09027, InfoNCE with L2 distances) as a LayerSync plugin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, Field

from layersync_core import Block, ConfigError, LayerSyncConfig, RegularizerBase, States, Term, Weight, hookimpl

Positive = Annotated[Weight, Field(gt=0, allow_inf_nan=False)]


class DispersiveConfig(BaseModel):
    """The keys of this plugin."""

    dispersive_enabled: bool = Field(False, description="push the samples of a batch apart in one block")
    dispersive_block: Annotated[int, Field(ge=1)] = Field(1, description="the block; 1 is the first")
    dispersive_lambda: Positive = Field(0.5, description="weight of the term")
    dispersive_tau: Positive = Field(0.5, description="temperature")


@hookimpl
def layersync_config_models() -> Sequence[type[BaseModel]]:
    return [DispersiveConfig]


@hookimpl
def layersync_regularizers(config: LayerSyncConfig) -> Sequence[RegularizerBase]:
    settings = config.of(DispersiveConfig)  # None while dispersive_enabled is off
    return [Dispersive(settings)] if settings else []


class Dispersive(RegularizerBase):
    name, order = "dispersive", 150

    def __init__(self, config: DispersiveConfig) -> None:
        self.config = config

    def layers(self, blocks: Sequence[Block]) -> set[int]:
        if self.config.dispersive_block > len(blocks):
            raise ConfigError(f"dispersive_block is {self.config.dispersive_block}; valid are 1 to {len(blocks)}")
        self.block = blocks[self.config.dispersive_block - 1]
        return {self.block.index}

    def compute(self, states: States, step: int) -> Term:
        flat_BZ = states.trainable_tokens(self.block.index).float().flatten(1)
        distance_BB = (flat_BZ[:, None] - flat_BZ[None]).square().mean(dim=-1)
        spread = (-distance_BB / self.config.dispersive_tau).exp().mean().log()
        loss = self.config.dispersive_lambda * spread
        return Term(loss, {"dispersive_loss": loss, "dispersive_distance": distance_BB.mean()})

    def describe(self) -> list[str]:
        return [f"dispersive: {self.block}"]
