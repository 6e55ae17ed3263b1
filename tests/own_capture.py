"""An adapter as a third party might write it, using only the protocol and nothing of LayerSync's own capture."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from layersync_core import Block, CaptureHandle, Forward, HiddenStateBuffer


class OwnHandle:
    """It fills only what it must."""

    why_none = "nothing ran"

    def __init__(self, blocks: nn.ModuleList, layers: Collection[int], buffer: HiddenStateBuffer) -> None:
        self.enabled, self._buffer, self._off = True, buffer, False
        self.policy: Callable[[CaptureHandle], None] = lambda capture: None
        self.forwards: list[Forward] = []
        self._handles = [blocks[0].register_forward_pre_hook(lambda module, args: self._begin())]
        self._handles += [
            blocks[layer].register_forward_hook(lambda module, args, output, layer=layer: self._hold(layer, output))
            for layer in layers
        ]

    def _holds(self) -> bool:
        return self.enabled and not self._off and torch.is_grad_enabled()

    def _begin(self) -> None:
        if self._holds():
            self.policy(self)
            self.forwards.append(Forward())

    def _hold(self, layer: int, output: Tensor) -> None:
        if self._holds():
            self.forwards[-1].outputs[layer] = output

    def collect(self, forward: Forward) -> None:
        for layer, state in forward.outputs.items():
            self._buffer[self._buffer.key(layer)] = state

    def discard(self, forward: Forward | None = None) -> None:
        self.forwards = [] if forward is None else [held for held in self.forwards if held is not forward]
        self._buffer.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._off = True
        yield
        self._off = False

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class OwnAdapter:
    """Written using only the protocol.

    Args:
        family: Id of the family.
        class_name: Class of its models.
        path: Where their blocks are.
    """

    api_version = 1

    def __init__(self, family: str = "own", class_name: str = "Toy", path: str = "blocks") -> None:
        self.family, self.model_classes, self._path = family, (class_name,), path

    def supports_hidden_states(self, model: nn.Module) -> bool:
        return type(model).__name__ in self.model_classes

    def list_blocks(self, model: nn.Module) -> list[Block]:
        blocks = model.get_submodule(self._path)
        return [Block(index, f"{self._path}.{index}") for index in range(len(blocks))]  # type: ignore[arg-type]

    def capture(self, model: nn.Module, layers: Collection[int], buffer: HiddenStateBuffer) -> CaptureHandle:
        return OwnHandle(model.get_submodule(self._path), layers, buffer)  # type: ignore[arg-type]
