"""Which image tokens of each forward are generated, measured from its main loss before the terms are computed."""

# Shapes: B batch, S image tokens, D channels

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from layersync_core.capture.forward import Forward, LastOutput
from layersync_core.capture.graph import SequenceFirst, place_of, sizes_of
from layersync_core.capture.seen import gradients, seen_tokens
from layersync_core.errors import CaptureError

NO_MAIN_LOSS = (
    "which tokens are generated is measured from the main loss, which was not passed: use apply(loss), or "
    "loss(main=loss)"
)


_KEPT = 16


class Marking:
    """Mark the generated tokens of forwards whose layout gives the number of image tokens, but not which are generated.

    It waits for no device: masks stay where they are, and whether one left anything out is read once it has arrived.

    Args:
        always: Measure every forward; otherwise only those of a new shape, until one shows tokens that aren't
            generated.
        first: What discovery measured on the first forward: where the generated tokens of each sample are in what the
            last block returned.
    """

    def __init__(self, always: bool, first: Sequence[Sequence[tuple[int, int]]] = ()) -> None:
        self.always, self._first = always, first
        self._known: set[torch.Size] = set()
        self._marked: dict[torch.Size, Tensor] = {}  # the latest
        self._waiting: list[tuple[Tensor, Any]] = []

    def mark(self, forward: Forward, main: Tensor | None) -> None:
        """Set in a forward that was read which tokens are generated.

        Args:
            forward: The forward.
            main: Its main loss, without any term; its graph is kept.

        Raises:
            CaptureError: There is no main loss, or it does not depend on what the last block returned.
        """
        self._look()
        last = None if forward.ask_last is None else forward.ask_last()
        if last is None:
            raise CaptureError(
                "which tokens are generated is measured at what the last block returned, but the last block did not "
                "run in this forward"
            )
        state = last.aligned
        if self._first:
            self._marked[state.shape] = _mask(self._first, last)
            self._known.add(state.shape)
            self._first = ()
        if not self.always and state.shape in self._known and not self._waiting:
            return
        if main is None:
            raise CaptureError(NO_MAIN_LOSS)
        (gradient,) = gradients(main, [state])
        if gradient is None:
            raise CaptureError(
                "which tokens are generated is measured from the main loss, which does not depend on what the last "
                "block returned (a model that is compiled as a whole, a loss of something else): discover and measure "
                "it uncompiled, or write an adapter whose target gives them"
            )
        seen_BS, span = seen_tokens(gradient), last.span
        if isinstance(span, SequenceFirst):
            seen_BS, span = seen_BS.T, span.span
        seen_BS = seen_BS[:, span]
        if not self.always:
            self._known.add(state.shape)
            self._ask(seen_BS.all())
        before = self._marked.pop(state.shape, None)
        if before is None and not self.always:
            before = torch.ones_like(seen_BS)
        if before is not None:
            # A head that is still at zero shows nothing, and neither does a loss that is scaled to zero.
            seen_BS = torch.where(seen_BS.any(), seen_BS, before)
        self._marked[state.shape] = seen_BS
        if len(self._marked) > _KEPT:
            del self._marked[next(iter(self._marked))]
        forward.target = seen_BS if forward.real is None else seen_BS & forward.real

    def refuse_all(self, sets: Collection[str]) -> None:
        """Refuse to align references as well, since measuring cannot distinguish them from text and padding.

        Raises:
            CaptureError: A regularizer asked for them.
        """
        if self.always and "all" in sets:
            raise CaptureError(
                "layersync_tokens all aligns reference tokens as well, which measuring cannot tell from padding or "
                "text: use target, or an adapter that marks them"
            )

    def _ask(self, whole: Tensor) -> None:
        arrived: Any = None
        if whole.is_cuda:
            whole, on_device = torch.empty_like(whole, device="cpu", pin_memory=True), whole
            whole.copy_(on_device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._waiting.append((whole, arrived))

    def _look(self) -> None:
        waiting, self._waiting = self._waiting, []
        for whole, arrived in waiting:
            if arrived is not None and not arrived.query():
                self._waiting.append((whole, arrived))
            elif not bool(whole):
                self.always = True


def _mask(ranges: Sequence[Sequence[tuple[int, int]]], last: LastOutput) -> Tensor:
    """Return (B, S) bool over the image tokens, from the ranges of generated tokens in each sample's whole tensor."""
    _, length = sizes_of(last.aligned, last.span)
    mask_BS = torch.zeros(len(ranges), length, dtype=torch.bool)
    for sample, found in enumerate(ranges):
        for start, stop in found:
            mask_BS[sample, start:stop] = True
    return mask_BS[:, place_of(last.span)].to(last.aligned.device)
