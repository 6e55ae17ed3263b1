"""A regularizer of a third party, and a small model that it is attached to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from layersync_core import Attachment, Block, attach
from tests.models import TOY, settings, toy, toy_states


class Other:
    """A third party's regularizer, which computes a given value."""

    def __init__(
        self,
        compute: Callable[[Any, int], Any],
        layers: Sequence[int] = (1,),
        name: str = "other",
        order: int = 100,
        module: nn.Module | None = None,
    ) -> None:
        self.name, self.order, self.module = name, order, module
        self._compute, self._layers = compute, set(layers)
        self.blocks: Sequence[Block] = ()

    def layers(self, blocks: Sequence[Block]) -> set[int]:
        self.blocks = blocks
        return self._layers

    def compute(self, states: Any, step: int) -> Any:
        return self._compute(states, step)


Register = Callable[..., None]


def states_apart(model: Any, x: Tensor) -> list[Tensor]:
    return toy_states(copy.deepcopy(model), x)


def attached(**more: Any) -> tuple[Any, Attachment]:
    model = toy()
    return model, attach(model, settings(1, 3, **more), adapter=TOY)
