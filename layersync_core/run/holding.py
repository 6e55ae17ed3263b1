"""Which training forwards of a program are held: all that a loss may still depend on.

A program cannot say which of its forwards are meant to be left alone; that shows when a loss comes.
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
from layersync_core.capture.identity import is_it
from layersync_core.protocol import CaptureHandle

# Forwards that nobody uses: those of compiled models have no mark that would die with them.
_KEPT = 32


def make_room(capture: CaptureHandle) -> None:
    """Forget the oldest of too many forwards; the policy of a run."""
    for forward in capture.forwards[: 1 - _KEPT]:
        capture.discard(forward)


def watch(attachment: Attachment, model: nn.Module, marked: Callable[[bool], None]) -> None:
    """Mark the graph of what each training forward of an attached model returns, so that it can be found.

    Args:
        attachment: Of the model.
        model: The model itself.
        marked: Told of each forward whether it has a graph; one without is forgotten.
    """
    if attachment.guard is not None:
        attachment.guard.asked = True
    # A program that calls the blocks without the model ends its forward with the last of them.
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
    # A compiled graph has one node for all it returns, so the stored states tell as much as a mark would.
    if torch.compiler.is_compiling() or not is_it(module, watched) or _compat.inside_backward():
        return
    held = attachment.forwards
    if not held or held[-1].end is not None or held[-1].by_model is not (by_model is not None):
        return
    forward = held[-1]
    # Whatever this forward left behind is of no use without its graph, and would be all that is left of it.
    forward.end = mark(output, partial(_clear, forward.outputs, forward.beside))
    marked(forward.end is not None)
    if forward.end is None:
        attachment.forget(forward)
    if by_model is None and "last" in forward.beside:
        # What is marked is the last block's own output, which must not be kept alive by looking at it.
        forward.beside.clear()
        forward.beside["last"] = Weakly(output)
    if by_model is not None:
        by_model()  # the model's own forward runs, so the end of its blocks need not be looked at


def _clear(*held: dict[Any, Any]) -> None:
    for item in held:
        item.clear()
