"""One training forward as a value: hooks create it, a capture lists it, and whoever has its loss has it read."""

# Shapes: B batch, S tokens, D channels, T frames, H rows, W columns

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    from torch import Tensor

    from layersync_core.capture.graph import Span

Grid = tuple[int, int, int]


class Weakly:
    """Weak references to what a block returned: a tensor, or a tuple or list of tensors and other things."""

    def __init__(self, output: Any) -> None:
        self._alone = not isinstance(output, (tuple, list))
        self._refs = [ref(item) if hasattr(item, "grad_fn") else None for item in ([output] if self._alone else output)]

    def get(self) -> Any:
        """Return it, with None for everything but tensors; None once a tensor is gone."""
        found = [None if item is None else item() for item in self._refs]
        if any(item is None and kept is not None for item, kept in zip(found, self._refs, strict=True)):
            return None
        return found[0] if self._alone else tuple(found)


@dataclass(frozen=True)
class LastOutput:
    """What the model's last block returned.

    Attributes:
        aligned: The tensor with the tokens to align, (B, S', D), (S', D) or, if its span says so, (S', B, D).
        others: Further streams, of text or audio.
        span: Where the tokens are in ``aligned``.
        joined: One sequence of all of these, returned by later blocks that the adapter does not list.
    """

    aligned: Tensor
    others: list[Tensor]
    span: Span
    joined: Tensor | None = None


@dataclass(eq=False)
class Forward:
    """A training forward: what went in, what the requested blocks returned and, once read, what those tokens are.

    A custom capture fills ``outputs`` while the model runs, and the second group when the forward is collected.

    Attributes:
        outputs: ``layer index -> the object the block returned``, untouched.
        args: Positional arguments of the model's forward or, where a trainer loops over blocks, of the first block.
        kwargs: Its keyword arguments.
        by_model: Opened by the model's own forward; otherwise by the first block of a trainer that loops over blocks.
        finished: The model's forward has returned, so hooks store nothing more.
        embedded: What the patch embedder returned.
        streams: Shapes of the tensors that the block before a joined sequence returned; None where it did not run.
        repeated: A block that ran twice in this forward.
        beside: ``last``, the object that the model's last block returned; ``given``, the arguments of that block; and
            ``later``, what a later block returned that the adapter does not list.
        end: A reference that dies with the graph of the result, where a host has marked it; otherwise None.

        target: (B, S) bool, True for generated tokens; None when all are.
        real: (B, S) bool, True for generated and reference tokens, False for padding; None when all are real.
        tracked: ``layer index -> the tensor the block returned``, for judging gradients.
        spans: ``layer index -> where the tokens are in that tensor``.
        video: The tokens have frames, so without a grid they cannot be viewed by frame.
        ask_grid: Computes ``grid`` on demand, since not every regularizer needs it; None where nothing can.
        ask_last: Finds the tokens in what the last block returned, if that is still there; None where nothing can.
    """

    outputs: dict[int, Any] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    by_model: bool = False
    finished: bool = False
    embedded: Any = None
    streams: tuple[Sequence[int] | None, ...] | None = None
    repeated: int | None = None
    beside: dict[str, Any] = field(default_factory=dict)
    end: ref[Any] | None = None

    target: Tensor | None = None
    real: Tensor | None = None
    tracked: Mapping[int, Tensor] = field(default_factory=dict)
    spans: Mapping[int, Span] = field(default_factory=dict)
    video: bool = False
    ask_grid: Callable[[], Grid | None] | None = None
    ask_last: Callable[[], LastOutput | None] | None = None

    @cached_property
    def grid(self) -> Grid | None:
        """(T, H, W) of the tokens in raster order; None where the model does not say."""
        return None if self.ask_grid is None else self.ask_grid()

    def release(self) -> None:
        """Drop every tensor, whoever still refers to the forward."""
        self.outputs.clear()
        self.beside.clear()
        self.args, self.kwargs, self.tracked = (), {}, {}
        self.embedded = self.target = self.real = self.ask_grid = self.ask_last = None

    @property
    def dead(self) -> bool:
        """Whether the graph of the result is gone, so no loss can depend on it any more."""
        return self.end is not None and self.end() is None
