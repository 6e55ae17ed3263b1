"""Measure in the user's own backward which tokens the main loss trains, and compare them with the chosen ones.

Only the model's head stands between the last block and the loss, and it works token by token: the gradient at that
block's output is nonzero exactly at the tokens that the loss sees. No second backward is run for it.
"""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from layersync_core import _compat
from layersync_core.capture.buffer import HiddenStateBuffer
from layersync_core.capture.forward import Forward, LastOutput
from layersync_core.capture.graph import SequenceFirst, place_of, sizes_of, tokens_of
from layersync_core.capture.seen import seen_tokens
from layersync_core.capture.verdict import Counts, count, judge, judge_joined
from layersync_core.errors import CaptureError, LayerSyncWarning
from layersync_core.protocol import Block, TokenSet

log = logging.getLogger(__name__)

_KINDS = 16
# A head that starts at zero gives no gradient before it is trained, and a loss may be scaled to zero. Each try waits
# twice as long as the one before, since a step may have many losses.
_TRIES = 8


@dataclass(eq=False)
class Check:
    """One forward whose backward is watched. It keeps no part of the graph alive.

    Attributes:
        key: The layout of its call.
        shape: (B, S) of the tensor that is measured.
        device: The device of that tensor.
        streams: Tokens of each stream, the aligned one first, where it is measured only after later blocks join them.
        span: Where the image, video or audio tokens are in it.
        sequences: Lengths of the forward's arguments, where all of them are sequences; else none.
        sequence_first: The tensors are (S, B, D).
        tokens: The token set that counts.
        chosen: (B, S) bool, True for the tokens that count.
        real: (B, S) bool, False for padding; None where nothing is padded.
        seen: (B, S) bool, True where the main loss's gradient is nonzero.
        others: The same for other tensors that the last block returned, by their place in its output.
        own: The part of the gradient that comes from the terms.
        finite: Whether every gradient was finite; a loss that overflows shows nothing.
        queued: A callback at the end of the backward is queued. A program may run several backwards through one
            forward.
        counts: The measurement, on its way to the host.
        arrived: CUDA event that shows whether it has arrived.
    """

    key: Hashable
    shape: tuple[int, int]
    device: torch.device
    span: slice
    sequences: list[int]
    sequence_first: bool = False
    streams: Sequence[int] = ()
    tokens: TokenSet = "target"
    chosen: Tensor | None = None
    real: Tensor | None = None
    seen: Tensor | None = None
    others: dict[int, Tensor] = field(default_factory=dict)
    own: list[Tensor] = field(default_factory=list)
    finite: Tensor | None = None
    queued: bool = False
    counts: Tensor | None = None
    arrived: Any = None

    def choose(self, forward: Forward, tokens: TokenSet) -> None:
        """Record which tokens of the forward the terms counted."""
        self.tokens = tokens
        mask = forward.target if tokens == "target" and forward.target is not None else forward.real
        self.chosen = torch.full(self.shape, bool(self.streams), dtype=torch.bool, device=self.device)
        if self.streams:
            return
        # The blocks of a model may be spread over devices.
        self.chosen[:, self.span] = True if mask is None else mask.to(self.device)
        if forward.real is not None:
            self.real = torch.ones_like(self.chosen)
            self.real[:, self.span] = forward.real.to(self.device)


class Guard:
    """Compare, once per call layout, the tokens that count with those that the main loss trains.

    Args:
        last: The model's last block.
        family: The adapter's family.

    Attributes:
        asked: A host calls ``settle`` before each optimiser step; otherwise the guard reports by itself.
        waiting: Measurements that have not been judged yet.
    """

    def __init__(self, last: Block, family: str) -> None:
        self.asked = False
        self._blind = ""
        self._last, self._family = last, family
        self._forwards: Counter[Hashable] = Counter()
        self._tries: Counter[Hashable] = Counter()
        self._answered: set[Hashable] = set()
        self.waiting: list[Check] = []
        self._error = ""

    @property
    def blind(self) -> str:
        """Why something could not be measured, as a clause; empty where all was, or there was nothing to measure."""
        tries = sum(self._tries.values())
        return self._blind or (self._no_gradient(tries) if tries and not (self._answered or self.waiting) else "")

    def begin(self, forward: Forward, buffer: HiddenStateBuffer) -> Check | None:
        """Watch a forward that was read, before its terms are computed; None where its layout has been measured.

        Raises:
            CaptureError: An earlier measurement found an error, and the program went on.
        """
        if self.waiting or self._error:
            self.settle(wait=False)
        if len(self._answered) >= _KINDS or (key := _layout(forward)) in self._answered:
            return None
        self._forwards[key] += 1
        if self._forwards[key] < 2 ** self._tries[key]:
            return None
        last = self._last_output(key, forward)
        if last is None:
            return None
        state, others = (last.aligned, last.others) if last.joined is None else (last.joined, [])
        self._tries[key] += 1
        turned = isinstance(last.span, SequenceFirst)
        sizes = sizes_of(state, last.span)
        check = Check(key, sizes, state.device, place_of(last.span), _sequences(forward), turned)
        if last.joined is not None:
            check.streams = [stream.shape[0 if turned else -2] for stream in (last.aligned, *last.others)]
        state.register_hook(partial(self._on_gradient, check, None))
        for place, other in enumerate(others):
            if other.requires_grad:
                other.register_hook(partial(self._on_gradient, check, place))
        name = buffer.key(self._last.index)
        if name in buffer and state is forward.tracked.get(self._last.index):
            # The terms get a separate branch, so that their gradient can be separated from that of the main loss.
            branch = state.view_as(state)
            buffer[name] = tokens_of(branch, last.span)
            branch.register_hook(check.own.append)
        return check

    def settle(self, wait: bool) -> None:
        """Judge the measurements.

        Args:
            wait: Also wait for those still on their way from a device.

        Raises:
            CaptureError: The tokens that count are not those that the main loss trains.
        """
        waiting, self.waiting = self.waiting, []
        for check in waiting:
            if check.arrived is not None:
                if not wait and not check.arrived.query():
                    self.waiting.append(check)
                    continue
                check.arrived.synchronize()
            self._judge(check)
        if self._error:
            raise CaptureError(self._error)

    def _judge(self, check: Check) -> None:
        assert check.counts is not None
        check.chosen = None  # later backwards through this forward are not looked at
        counts = Counts(*check.counts.tolist())
        if not counts.active:
            return  # it shows nothing, so the next forward of this layout is watched as well
        self._answered.add(check.key)
        where = f"{self._last}, adapter {self._family}"
        if check.streams:
            finding = judge_joined(counts, check.streams, where)
        else:
            finding = judge(counts, check.shape[1], check.tokens, check.sequences, where)
        if finding is None:
            return
        if finding.is_error:
            self._error = finding.text
        elif finding.kind == "extra":  # it may be intended, and LayerSync's own part is right
            log.warning(finding.text)
        else:
            warnings.warn(finding.text, LayerSyncWarning, stacklevel=2)

    def _last_output(self, key: Hashable, forward: Forward) -> LastOutput | None:
        """Return what the last block returned; None where nothing can be measured on it, which is logged once."""
        why = "the adapter's own capture does not say what the last block returned"
        if self._tries[key] >= _TRIES:
            why = self._no_gradient(_TRIES)
        elif forward.ask_last is not None:
            try:
                last = forward.ask_last()
            except CaptureError as error:
                why = str(error)
            else:
                if last is None or not last.aligned.requires_grad:
                    return None  # skipped in this forward, or without anything trainable, which is reported elsewhere
                if type(last.aligned) is Tensor:
                    return last
                why = f"what {self._last} returned is spread over devices"
        self._answered.add(key)
        if not self._blind:
            self._blind = why
            log.warning("which tokens the main loss trains is not measured: %s", why)
        return None

    def _no_gradient(self, forwards: int) -> str:
        return (
            f"in {forwards} forward{'s' * (forwards != 1)} no gradient of the main loss arrived at {self._last} (a "
            "model that is compiled as a whole, a head that stays at zero, a loss without a backward or one that "
            "consists of LayerSync's terms only)"
        )

    def _on_gradient(self, check: Check, place: int | None, gradient: Tensor | None) -> None:
        # Under re-entrant checkpointing a tensor that the loss does not see gets None.
        if gradient is None or check.chosen is None:
            return
        own = check.own.pop() if place is None and check.own else 0
        gradient = gradient.detach()
        finite = gradient.isfinite().all()
        check.finite = finite if check.finite is None else check.finite & finite
        seen = seen_tokens(gradient, own)
        seen = seen.T if check.sequence_first else seen
        if place is None:
            check.seen = seen if check.seen is None else check.seen | seen
        else:
            check.others[place] = seen | check.others[place] if place in check.others else seen
        if not check.queued:
            check.queued = True
            _compat.at_end_of_backward(partial(self._count, check))

    def _count(self, check: Check) -> None:
        assert check.chosen is not None
        assert check.finite is not None
        check.queued = False
        seen = torch.zeros_like(check.chosen) if check.seen is None else check.seen
        counts = count(seen, check.chosen, check.real, list(check.others.values())) * check.finite
        if counts.is_cuda:
            counts, on_device = torch.empty_like(counts, device="cpu", pin_memory=True), counts
            counts.copy_(on_device, non_blocking=True)
            check.arrived = torch.cuda.Event()
            check.arrived.record()
        check.counts = counts
        if check not in self.waiting:
            self.waiting.append(check)
        if self.asked:
            return
        if check.arrived is None:
            self.settle(wait=True)
        else:
            self._settle_before_step()

    def _settle_before_step(self) -> None:
        def settle(*_: Any) -> None:
            handle.remove()
            self.settle(wait=True)

        handle = register_optimizer_step_pre_hook(settle)


def _layout(forward: Forward) -> Hashable:
    """Return what distinguishes one kind of call from another: which arguments there are, but not their lengths."""
    return (
        forward.by_model,
        tuple(map(_kind, forward.args)),
        frozenset({(name, _kind(value)) for name, value in forward.kwargs.items() if value is not None}),
        forward.target is None,
        forward.real is None,
    )


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.ndim
    # Sizes of several images per sample: references beside the generated one.
    return isinstance(value, (list, tuple)) and any(
        isinstance(item, (list, tuple)) and len(item) > 1 and isinstance(item[0], (list, tuple)) for item in value
    )


def _sequences(forward: Forward) -> list[int]:
    tensors = [value for value in (*forward.args, *forward.kwargs.values()) if isinstance(value, Tensor)]
    return [] if any(tensor.ndim > 3 for tensor in tensors) else [item.shape[1] for item in tensors if item.ndim == 3]
