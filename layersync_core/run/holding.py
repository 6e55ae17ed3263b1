"""Holding the training forwards of a program: all those that a loss may still depend on.

A program cannot say which of its forwards to leave alone; that shows only when a loss arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from layersync_core import _compat
from layersync_core.attachment import Attachment
from layersync_core.capture.forward import Weakly
from layersync_core.capture.graph import mark
from layersync_core.capture.hooks import hook
from layersync_core.capture.identity import is_same
from layersync_core.protocol import CaptureHandle

# Bounds the forwards that are never used: those of compiled models have no mark that dies with their graph.
_KEPT = 32


def make_room(capture: CaptureHandle) -> None:
    """Forget the oldest forward if there are too many; this is the policy of a run."""
    for forward in capture.forwards[: 1 - _KEPT]:
        capture.discard(forward)


def watch(attachment: Attachment, model: nn.Module, marked: Callable[[bool], None]) -> None:
    """Mark the graph of what each training forward of an attached model returns, so that it can be found.

    Args:
        attachment: The attachment of the model.
        model: The model itself.
        marked: Called for each forward with whether it has a graph; a forward without one is forgotten.
    """
    if attachment.is_searching:
        # The capture's hooks, and these, are replaced once the blocks are known.
        handle = model.register_forward_hook(hook(partial(_mark, attachment, marked, model, _nothing)))
        attachment.when_found = partial(_watch_anew, handle.remove, attachment, model, marked)
        return
    if attachment.guard is not None:
        attachment.guard.asked = True
    # For a program that calls the blocks without the model, the forward ends with the last block.
    last = model.get_submodule(attachment.blocks[-1].path)
    end_of_blocks = last.register_forward_hook(hook(partial(_mark, attachment, marked, last, None)))
    model.register_forward_hook(hook(partial(_mark, attachment, marked, model, end_of_blocks.remove)))


def _mark(
    attachment: Attachment,
    marked: Callable[[bool], None],
    watched: nn.Module,
    by_model: Callable[[], None] | None,
    module: nn.Module,
    args: Any,
    output: Any,
) -> None:
    # A compiled graph has a single node for all its outputs, so the stored states show as much as a mark would.
    if torch.compiler.is_compiling() or not is_same(module, watched) or _compat.inside_backward():
        return
    held = attachment.forwards
    if not held or held[-1].end is not None or held[-1].by_model is not (by_model is not None):
        return
    forward = held[-1]
    # Once the graph is freed these outputs are useless; drop them so they don't leak.
    forward.end = mark(output, partial(_clear, forward.outputs, forward.beside))
    marked(forward.end is not None)
    if forward.end is None:
        attachment.forget(forward)
    if by_model is None and "last" in forward.beside:
        # The mark is on the last block's own output, so nothing here may keep that output alive.
        forward.beside.clear()
        forward.beside["last"] = Weakly(output)
    if by_model is not None:
        by_model()  # the model's own forward runs, so the last block need not be watched


def _watch_anew(
    stop: Callable[[], None], attachment: Attachment, model: nn.Module, marked: Callable[[bool], None]
) -> None:
    stop()
    attachment.when_found = None
    watch(attachment, model, marked)


def _nothing() -> None:
    """Do nothing, for a model whose last block is unknown."""


def _clear(*held: dict[Any, Any]) -> None:
    for item in held:
        item.clear()
