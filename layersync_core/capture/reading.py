"""From what blocks returned to tokens in the buffer, after the forward. It runs at every step, so it must be fast."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import proxy

from torch import Tensor, nn

from layersync_core.capture.buffer import HiddenStateBuffer
from layersync_core.capture.changes import Blocks
from layersync_core.capture.forward import Forward, LastOutput, Weakly
from layersync_core.capture.graph import SequenceFirst, Span, tensors_in, tokens_of
from layersync_core.capture.layout import BlockStack, ForwardCall, ModelLayout
from layersync_core.capture.lengths import CAUSE, Dual, Lengths, refuse_sharded, refuse_split, shapes_of
from layersync_core.errors import CaptureError


@dataclass(frozen=True)
class Parameters:
    """The parameters of a module's forward, read once: ``Signature.bind`` at every step is slow."""

    positional: Sequence[str]
    defaults: Mapping[str, Any]

    @classmethod
    def of(cls, module: nn.Module) -> Parameters:
        """Return the parameters of a module's forward."""
        # Read from the class, since accelerate replaces forward on instances.
        _self, *parameters = inspect.signature(type(module).forward).parameters.values()
        by_keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return cls(
            [parameter.name for parameter in parameters if parameter.kind not in by_keyword],
            {item.name: item.default for item in parameters if item.default is not inspect.Parameter.empty},
        )

    def by_name(self, forward: Forward) -> dict[str, Any]:
        """Return the arguments of a call by name, defaults included."""
        return {**self.defaults, **dict(zip(self.positional, forward.args, strict=False)), **forward.kwargs}


@dataclass(frozen=True)
class Reader:
    """Turn what blocks returned into tokens in the buffer, after the forward."""

    layout: ModelLayout
    model: nn.Module
    stacks: Mapping[int, tuple[BlockStack, str]]
    last: tuple[BlockStack, str]
    buffer: HiddenStateBuffer
    parameters: Parameters
    block_parameters: Parameters
    blocks: Blocks
    watched: Sequence[nn.Module] = ()
    dual: Dual | None = None

    def read(self, forward: Forward) -> None:
        """Set in a finished forward what its tokens are, and put its states into the buffer."""
        tracked: dict[int, Tensor] = {}
        spans: dict[int, Span] = {}
        refuse_split(self.watched)
        lengths = self._lengths(forward)
        for index in self.stacks:
            tracked[index], spans[index] = self._state(forward, index, lengths)
            tensor = self.buffer[self.buffer.key(index)] = tokens_of(tracked[index], spans[index])
        self.blocks.check_apart(tracked)
        layout = self.layout
        # A forward that referred to itself would keep its graph in memory until Python looks for such cycles.
        weak = proxy(forward)
        call = partial(self._call, weak, *tensor.shape[:2])
        forward.video, grid_of = layout.video, layout.grid
        if grid_of is not None and forward.by_model:
            forward.ask_grid = lambda: grid_of(call())
            if lengths.count is None:
                lengths.check_grid(forward, self.stacks.values(), tensor.shape[1])
        forward.target, forward.real = self._masks(forward, call)
        forward.tracked, forward.spans = tracked, spans
        if forward.beside:
            forward.ask_last = partial(self._last_output, weak, lengths)

    def peek(self, forward: Forward, index: int) -> Tensor:
        """Return (B, S, D), the tokens of a block that has just returned, before the forward is over.

        Raises:
            CaptureError: As in ``read``.
        """
        held = forward.beside
        if "lengths" not in held:
            refuse_split(self.watched)
            held["lengths"] = self._lengths(forward)
        tokens_BSD = tokens_of(*self._state(forward, index, held["lengths"]))
        if self.dual is not None and index == self.dual.index:
            # A caller that peeks need not keep the output; its shapes show how many tokens later blocks join.
            forward.streams = shapes_of(forward.outputs.pop(index))
            del held["lengths"]
        return tokens_BSD

    def counted(self, forward: Forward, batch: int, tokens: int) -> Tensor | None:
        """Return (B, S) bool, True for the generated tokens of a forward that is not over yet; None when all are."""
        target, real = self._masks(forward, partial(self._call, forward, batch, tokens))
        return real if target is None else target

    def arguments(self, forward: Forward) -> Mapping[str, Any]:
        """Return the arguments of the model's forward by name; none where a trainer calls the blocks itself."""
        return self.parameters.by_name(forward) if forward.by_model else {}

    def _state(self, forward: Forward, index: int, lengths: Lengths) -> tuple[Tensor, Span]:
        """Return the tensor with the tokens in a block's output, and where they are in it."""
        stack, path = self.stacks[index]
        output = forward.outputs[index]
        state = _select(output, stack, path)
        stack = lengths.settle_axes(stack, path, state.shape)
        if type(state) is not Tensor:
            for axis in (-4, -3, -2) if stack.gridded else (0 if stack.sequence_first else -2,):
                refuse_sharded(state, path, axis)
        return state, self._image_span(forward, _length(state, stack), stack, path, lengths, output is state)

    def _masks(self, forward: Forward, call: Callable[[], ForwardCall]) -> tuple[Tensor | None, Tensor | None]:
        """Return which tokens are generated, and which are real."""
        layout = self.layout
        target_of, real_of = layout.target, layout.real
        if not forward.by_model:
            target_of, real_of = layout.block_target or target_of, layout.block_real or real_of
        target = None if target_of is None else self._mask(target_of, call)
        real = None if real_of is None else self._mask(real_of, call)
        return target & real if target is not None and real is not None else target, real

    def _last_output(self, forward: Forward, lengths_read: Lengths) -> LastOutput | None:
        output = forward.beside["last"]
        if isinstance(output, Weakly):
            output = output.get()
            if output is None:
                return None
        state = _select(output, *self.last)
        stack = lengths_read.settle_axes(*self.last, state.shape)
        counted = Lengths(lengths_read.count, lengths_read.counted_by)  # for this block only
        span = self._image_span(forward, _length(state, stack), stack, self.last[1], counted, output is state)
        # A tensor that the block passes on untouched also gets gradient from its other uses.
        given = set(map(id, tensors_in(forward.beside.get("given"))))
        streams = [stream for stream in _streams(output, state) if id(stream) not in given or stream is state]
        later = _streams(forward.beside.get("later"), state)
        lengths = [_length(stream, stack) for stream in streams]
        if len(streams) > 1 and [_length(stream, stack) for stream in later] == lengths:
            # Blocks that the adapter does not list return the same streams, and the last of them counts.
            state = later[next(place for place, stream in enumerate(streams) if stream is state)]
            streams, later = later, []
        others = [stream for stream in streams if stream is not state]
        joined = next((stream for stream in later if others and _length(stream, stack) == sum(lengths)), None)
        return LastOutput(state, others, span, joined)

    def _lengths(self, forward: Forward) -> Lengths:
        layout = self.layout
        source, count, embedded = "the patch embedder", None, forward.embedded
        exact = False
        if layout.image_tokens is not None and forward.by_model:
            source, count = "image_tokens", layout.image_tokens(self._call(forward))
        elif layout.embedder and getattr(embedded, "ndim", 0) == 3:
            count, exact = embedded.shape[1], True
        samples = frozenset(embedded.shape[:1]) if exact else _samples(forward)
        if count is None:
            return Lengths(None, source, samples=samples)
        declared = layout.joined_tokens
        joint = declared(self._call(forward, tokens=count)) if declared is not None else None
        if joint is None and self.dual is not None:
            text = self.dual.text(forward)
            joint = None if text is None else count + text
        return Lengths(count, source, joint, samples, exact)

    def _call(self, forward: Forward, batch: int = 0, tokens: int = 0) -> ForwardCall:
        if forward.by_model:
            return ForwardCall(self.model, self.parameters.by_name(forward), batch, tokens)
        return ForwardCall(self.model, {}, batch, tokens, self.block_parameters.by_name(forward))

    def _mask(
        self, mask_of: Callable[[ForwardCall], Tensor | None], make_call: Callable[[], ForwardCall]
    ) -> Tensor | None:
        call = make_call()
        if not call.arguments and mask_of not in (self.layout.block_target, self.layout.block_real):
            raise CaptureError(
                f"the forward of {type(self.model).__name__} did not run (its blocks were called one by one), so "
                "reference tokens and padding cannot be distinguished from generated tokens"
            )
        mask = mask_of(call)
        if mask is None:
            return None
        shape = (call.batch, call.tokens)
        if tuple(mask.shape) not in (shape, shape[1:]):
            raise CaptureError(
                f"the token mask of {type(self.model).__name__} has shape {tuple(mask.shape)}, "
                f"the hidden states have {shape[0]} samples of {shape[1]} tokens; target and real return one value per "
                f"sample and token, or per token{'' if mask.shape[-1:] == shape[1:] else f'; or {CAUSE}'}"
            )
        return mask.expand(shape)

    def _image_span(
        self, forward: Forward, length: int, stack: BlockStack, path: str, lengths: Lengths, alone: bool
    ) -> Span:
        """Return where the image tokens are in a block's output; refuse a length that shows other tokens among them."""
        cut = stack.joined != "all"
        if alone and stack.element is not None and not cut:
            raise CaptureError(
                f"{path} returned one tensor, but its adapter expects a value at position {stack.element}; leave out "
                'element or, where text and image are joined in it, write joined="first" or "last"'
            )
        count = lengths.count
        if count is None and cut:
            what = f"{path} returned text and image tokens as one sequence of {length}"
            raise CaptureError(f"{what}, and {self._why_uncounted(forward)}")
        lengths.check(stack, path, length, alone)
        start = stack.offset if cut else 0
        if count is None:
            start, count = 0, length
        elif cut and stack.joined == "last":
            start = length - count - stack.offset
        if not 0 <= start <= length - count:
            raise CaptureError(
                f"{path} returned {length} tokens, too few for {count} of the image and the {stack.offset} that its "
                f"adapter expects beyond them: {CAUSE}"
            )
        span = slice(start, start + count)
        return SequenceFirst(span) if stack.sequence_first else span

    def _why_uncounted(self, forward: Forward) -> str:
        embedder, embedded = self.layout.embedder, forward.embedded
        if embedder is None and self.layout.image_tokens is not None:
            return "the model's forward, from which image_tokens counts, did not run, so they cannot be told apart"
        if embedder is None:
            return (
                "its adapter names no embedder, so they cannot be told apart; embedder is the path of the module that "
                "turns the sample into tokens; or write image_tokens, which returns how many there are"
            )
        if embedded is None:
            return "the patch embedder did not run, so they cannot be told apart"
        what = f"shape {tuple(embedded.shape)}" if isinstance(embedded, Tensor) else f"a {type(embedded).__name__}"
        return (
            f"the embedder {embedder} returned {what} where (batch, tokens, channels) was expected, so they cannot be "
            "told apart; name the module that returns tokens, or write image_tokens, which returns how many there are"
        )


def _select(output: Any, stack: BlockStack, path: str) -> Tensor:
    """Return the hidden states from what a block returned."""
    state = output
    for step in stack.element if isinstance(stack.element, tuple) else (stack.element,):
        if isinstance(step, str):
            state = state.get(step) if isinstance(state, Mapping) else getattr(state, step, None)
        elif isinstance(state, (tuple, list)):
            if step is None or step >= len(state):
                raise CaptureError(
                    f"{path} returned {len(state)} values, but its adapter expects "
                    f"{'one tensor' if step is None else f'a value at position {step}'}; element of its BlockStack is "
                    f"the position of the image tokens, from 0 to {len(state) - 1}"
                )
            state = state[step]
    if not isinstance(state, Tensor) or state.ndim != (5 if stack.gridded else 3 if stack.batched else 2):
        what = f"shape {tuple(state.shape)}" if isinstance(state, Tensor) else f"a {type(state).__name__}"
        axes = "batch, tokens, channels" if stack.batched else "tokens, channels"
        axes = "batch, frames, rows, columns, channels" if stack.gridded else axes
        raise CaptureError(
            f"{path} returned {what} where hidden states ({axes}) were expected; element of its BlockStack picks them "
            "from what a block returns, and batched=False says that a block returns those of one sample"
        )
    return state


def _samples(forward: Forward) -> frozenset[int]:
    """Return how many samples a call may have: the batch is the first axis of those arguments that have one."""
    if not forward.by_model:
        return frozenset()  # the first block takes the hidden states themselves
    given = (*forward.args, *forward.kwargs.values())
    return frozenset(value.shape[0] for value in given if isinstance(value, Tensor) and value.ndim)


def _length(state: Tensor, stack: BlockStack) -> int:
    return state.shape[1:-1].numel() if stack.gridded else state.shape[0 if stack.sequence_first else -2]


def _streams(output: Any, like: Tensor) -> list[Tensor]:
    return [tensor for tensor in tensors_in(output) if tensor.ndim == like.ndim]
