"""Which tokens of a block a loss sees through a head that still has zero weights and so passes no gradient."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core.capture.discovery.record import Path, Recording, Run, streams
from layersync_core.capture.graph import tensors_in
from layersync_core.capture.seen import gradients

_SCALE = 0.02  # the usual scale of initial weights


def behind_zeros(model: nn.Module, recording: Recording, last: Run, loss: Tensor) -> dict[Path, Tensor] | None:
    """Return the gradients at what a block returns, as if the zero weights outside of blocks were not zero.

    A head that starts at zero hides what the loss sees of the tokens, but not what it sees of the model's output: that
    gradient is carried on through a second forward, which only needs memory for the head.

    Args:
        model: The unwrapped model, whose own weights stay as they are.
        recording: The forward.
        last: The run of the block.
        loss: The loss of that forward.

    Returns:
        By place in what the block returned; None where the loss sees nothing of the output, or nothing is at zero.
    """
    before = [tensor for tensor in tensors_in(recording.output) if tensor.is_floating_point()]
    wanted = gradients(loss, before)
    if not any(item is not None and bool(item.any()) for item in wanted):
        return None
    blocks = {id(parameter) for run in recording.blocks for parameter in run.module.parameters()}
    moved = {
        name: parameter.detach() + _SCALE * torch.randn_like(parameter)
        for name, parameter in model.named_parameters()
        if id(parameter) not in blocks and parameter.numel() and not bool(parameter.any())
    }
    if not moved:
        return None
    # Re-entrant checkpoints put the grad mode back behind a block, so that the graph must begin before it.
    for whole in (False, True):
        found = _again(model, moved, recording, last.module, wanted, whole)
        if found:
            return found
    return None


def _again(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    recording: Recording,
    block: nn.Module,
    wanted: Sequence[Tensor | None],
    whole: bool,
) -> dict[Path, Tensor]:
    returned: dict[Path, Tensor] = {}
    with (
        warnings.catch_warnings(),
        torch.set_grad_enabled(whole),
        _tracked_behind(block, returned, whole),
        _autocast(recording),
    ):
        warnings.simplefilter("ignore")  # the model's own warnings were shown in the first forward
        again = torch.func.functional_call(model, dict(weights), recording.args, dict(recording.kwargs))
    after = [tensor for tensor in tensors_in(again) if tensor.is_floating_point()]
    pairs = [
        (tensor, weight)
        for tensor, weight in zip(after, wanted, strict=False)
        if weight is not None and tensor.requires_grad and tensor.shape == weight.shape
    ]
    if not pairs or not returned:
        return {}
    summed = torch.stack([(tensor.float() * weight.float()).sum() for tensor, weight in pairs]).sum()
    found = gradients(summed, list(returned.values()))
    return {place: item for place, item in zip(returned, found, strict=True) if item is not None}


@contextmanager
def _tracked_behind(block: nn.Module, returned: dict[Path, Tensor], whole: bool) -> Iterator[None]:
    """Record what a block returns; unless the whole forward has a graph, build one from there on."""

    def begin(module: nn.Module, args: Any, output: Any) -> None:
        for place, tensor in streams(output, block):
            if not whole and not tensor.requires_grad:
                tensor.requires_grad_()
            returned[place] = tensor
        if not whole:
            torch.set_grad_enabled(True)

    handle = block.register_forward_hook(begin)
    try:
        yield
    finally:
        handle.remove()


def _autocast(recording: Recording) -> AbstractContextManager[Any]:
    if recording.autocast is None:
        return nullcontext()
    kind, dtype = recording.autocast
    return torch.autocast(kind, dtype)
