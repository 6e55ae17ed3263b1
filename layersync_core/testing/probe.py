"""Inspect a model's hidden states without an attachment: an adapter's view, and what the blocks really returned."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core.capture.buffer import HiddenStateBuffer
from layersync_core.capture.forward import Forward
from layersync_core.capture.graph import tensors_in
from layersync_core.capture.policy import only_forward
from layersync_core.protocol import Adapter
from layersync_core.scaffold.weights import scatter_weights as scatter_weights


@dataclass(frozen=True)
class Seen:
    """One forward as an adapter captured it.

    Attributes:
        states: ``layer index -> (B, S, D)``.
        tokens: Masks and grid.
        output: What the model returned.
    """

    states: dict[int, Tensor]
    tokens: Forward
    output: Any


def look(adapter: Adapter, model: nn.Module, inputs: Mapping[str, Any]) -> Seen:
    """Run one forward and return every layer's tokens."""
    layers = [block.index for block in adapter.list_blocks(model)]
    buffer = HiddenStateBuffer(layers)
    handle = adapter.capture(model, layers, buffer)
    try:
        output = model(**inputs)
        forward = only_forward(handle)
        handle.collect(forward)
        return Seen({layer: buffer[buffer.key(layer)] for layer in layers}, forward, output)
    finally:
        handle.remove()


@contextmanager
def raw_outputs(modules: Mapping[Any, nn.Module]) -> Iterator[dict[Any, list[Any]]]:
    """Collect what modules return, with separate hooks, in the order in which they ran."""
    outputs: dict[Any, list[Any]] = {}

    def store(key: Any) -> Callable[..., None]:
        return lambda module, args, output: outputs.setdefault(key, []).append(output)

    handles = [module.register_forward_hook(store(key)) for key, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def find_tokens(state_BSD: Tensor, raw: Any) -> Tensor:
    """Return the same tokens as a slice of what the block returned, found by their values.

    Raises:
        AssertionError: The block returned no such tokens.
    """
    length = state_BSD.shape[1]
    tensors = [tensor[None] if tensor.ndim == 2 else tensor for tensor in tensors_in(raw)]  # (S, D), one sample
    tensors = [tensor.flatten(1, -2) if tensor.ndim == 5 else tensor for tensor in tensors]  # (B, T, H, W, D)
    turned = [tensor.transpose(0, 1) for tensor in tensors if tensor.ndim == 3]  # (S, B, D)
    for tensor in (*tensors, *turned):
        if tensor.ndim != 3 or tensor.shape[::2] != state_BSD.shape[::2]:
            continue
        for start in range(tensor.shape[1] - length + 1):
            part = tensor[:, start : start + length]
            if torch.equal(part, state_BSD):
                return part
    raise AssertionError(
        "the tokens in the buffer aren't a slice of what the block returned; your own capture() must provide "
        "consecutive tokens of the block's own output, neither changed nor copied"
    )


def randomise_weights(model: nn.Module) -> nn.Module:
    """Return the model with random weights so large that its tokens differ a lot between blocks and from each other."""
    seed_everything()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def seed_everything(seed: int = 0) -> None:
    """Make what follows repeatable."""
    random.seed(seed)
    torch.manual_seed(seed)
