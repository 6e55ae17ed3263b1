"""How alike the blocks of a model are: the mean cosine between the hidden states of every two blocks."""

# Shapes: N blocks, B batch, S tokens, D channels

from __future__ import annotations

import torch
from torch import Tensor, nn

from layersync_core import Adapter, HiddenStateBuffer, only_forward
from layersync_plugin_trainer.data import Dataset, generator
from layersync_plugin_trainer.feeding import Feed
from layersync_plugin_trainer.objective import Batch, draw


def layer_similarity(
    model: nn.Module, adapter: Adapter, feed: Feed, data: Dataset, seed: int, device: torch.device, count: int = 32
) -> Tensor:
    """Return the mean cosine of every two blocks' tokens, on held-out samples with fixed noise and times.

    The model must have no attachment.

    Returns:
        (N, N) on the CPU; NaN for two blocks of different width or number of tokens.
    """
    batch = draw(data.held_out, data.held_out_labels, generator(seed, "held out"))[:count].to(device)
    states, mask = block_states(model, adapter, feed, batch)
    units = [_units(state, mask) for state in states]
    matrix = torch.full((len(units), len(units)), torch.nan)
    for i, one in enumerate(units):
        for j, other in enumerate(units):
            if one.shape == other.shape:
                matrix[i, j] = (one * other).sum(-1).mean().cpu()
    return matrix


def block_states(model: nn.Module, adapter: Adapter, feed: Feed, batch: Batch) -> tuple[list[Tensor], Tensor | None]:
    """Return the tokens of every block in one forward on noisy samples.

    The model must have no attachment.

    Returns:
        One (B, S, D) for each block, detached, and a (B, S) mask of the tokens that count; None if all do.
    """
    blocks = adapter.list_blocks(model)
    buffer = HiddenStateBuffer(range(len(blocks)))
    training = model.training
    handle = adapter.capture(model, range(len(blocks)), buffer)
    try:
        # In training mode and with gradients, since only such a forward is captured.
        with torch.enable_grad():
            feed(model.train(), batch.noisy, batch.time, batch.labels)
        forward = only_forward(handle)
        handle.collect(forward)
        states = [buffer[buffer.key(index)].detach().flatten(1, -2) for index in range(len(blocks))]
        return states, forward.real if forward.target is None else forward.target
    finally:
        handle.discard()
        handle.remove()
        model.train(training)


def _units(state_BSD: Tensor, mask_BS: Tensor | None) -> Tensor:
    flat = state_BSD.float()
    kept = flat.flatten(0, 1) if mask_BS is None else flat[mask_BS]
    return torch.nn.functional.normalize(kept, dim=-1)
