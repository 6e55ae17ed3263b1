"""A regularizer with a trainable part, for those that have to train and save it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from torch import nn

from layersync_core import LayerSyncConfig, Term
from layersync_core.losses.hookspecs import hookimpl
from layersync_core.session import plugins


class Probe:
    """A linear map of the first block's tokens."""

    name, order = "probe", 100

    def __init__(self) -> None:
        self.module = nn.Linear(48, 1)

    def layers(self, blocks: Sequence[Any]) -> set[int]:
        self.module = nn.Linear(blocks[0].width, 1)
        return {0}

    def compute(self, states: Any, step: int) -> Term:
        loss = self.module(states.tokens(0)).square().mean()
        return Term(loss, {"probe_loss": loss})


@pytest.fixture
def probe() -> Iterator[list[Probe]]:
    """A plugin of a third party that brings a new probe for every attached model."""
    made: list[Probe] = []

    class Plugin:
        @hookimpl
        def layersync_regularizers(self, config: LayerSyncConfig) -> Sequence[Any]:
            made.append(Probe())
            return made[-1:]

    plugins().manager.register(Plugin(), name="probe of a test")
    yield made
    plugins().manager.unregister(name="probe of a test")
