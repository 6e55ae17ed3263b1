"""Hooks that store what the asked blocks return during the one training forward of a step.

Two rules make this hold under gradient checkpointing: a hook stores the raw object that the block returned and does
nothing else with it (under re-entrant checkpointing that very object gets its ``grad_fn`` after the hook has run, a
slice made of it in the hook never does), and hooks store only inside an open pass (a recomputation during backward
runs them again).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import nn

from layersync_core.capture.compiling import allow_checkpointed_hooks, disallow_checkpointed_hooks
from layersync_core.capture.graph import Mark, mark
from layersync_core.errors import CaptureError
from layersync_core.protocol import Tokens

SECOND_FORWARD = (
    "a second training forward ran before the states of the first were used, and nobody can know which one was meant: "
    "call apply() after each training forward, and run further forwards under torch.no_grad() or "
    "inside `with attachment.paused():`"
)


# Forwards that nobody uses: those of compiled models have no mark that would die with them.
_KEPT = 32


@dataclass(eq=False)
class Pass:
    """One training forward: what went in, and what the asked blocks returned.

    Attributes:
        args: Positional arguments of the model's forward or, where a trainer loops over blocks, of the first block.
        kwargs: Its keyword arguments.
        by_model: Opened by the model's own forward; otherwise by the first block of a trainer that loops over blocks.
        finished: The model's forward has returned, so that hooks store nothing more.
        outputs: ``layer index -> the object the block returned``, untouched.
        embedded: What the patch embedder returned.
        repeated: A block that ran twice in this pass.
        end: Mark on the graph of what the forward returned, which dies with it; None where the graph was not seen.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    by_model: bool = False
    finished: bool = False
    outputs: dict[int, Any] = field(default_factory=dict)
    embedded: Any = None
    repeated: int | None = None
    end: ref[Mark] | None = None

    @property
    def dead(self) -> bool:
        """Whether the graph of what the forward returned is gone, so that no loss can depend on it any more."""
        return self.end is not None and self.end() is None


class Capture:
    """A running capture on one model; implements ``CaptureHandle``.

    Args:
        model: The unwrapped model.
        blocks: ``layer index -> block`` for the asked layers.
        first: The model's first block.
        last: The model's last block.
        embedder: The patch embedder, whose output's length is the number of image tokens; None if not needed.
        read: Turns a finished pass into tokens and fills the buffer.
        clear: Empties the buffer.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[int, nn.Module],
        first: nn.Module,
        last: nn.Module,
        embedder: nn.Module | None,
        read: Callable[[Pass], Tokens],
        clear: Callable[[], None],
    ) -> None:
        self.enabled = True
        self._model, self._first, self._last, self._embedder = model, first, last, embedder
        self._blocks, self._read, self._clear = blocks, read, clear
        self._pass: Pass | None = None
        self._several = False
        self._earlier: list[Pass] = []
        self._chosen: Pass | None = None
        self._pauses = 0
        self._skipped = ""
        self._embedded: Any = None  # for the next blocks that are called one by one
        self._handles = [
            model.register_forward_pre_hook(_Hook(self._on_model_enter), with_kwargs=True),
            # Always called, so that a forward that raises is forgotten at once.
            model.register_forward_hook(_Hook(self._on_model_leave), always_call=True),
            first.register_forward_pre_hook(_Hook(self._on_first_block), with_kwargs=True),
        ]
        if embedder is not None:
            self._handles.append(embedder.register_forward_hook(_Hook(self._on_embedder)))
        for index, block in blocks.items():
            self._handles.append(block.register_forward_hook(_Hook(_Store(self, index, block))))
        allow_checkpointed_hooks()

    def collect(self) -> Tokens:
        """Put the states of the last training forward into the buffer.

        Raises:
            CaptureError: There was none, it did not finish, or an asked block did not run in it exactly once.
        """
        current = self._chosen or self._pass
        if current is None:
            raise CaptureError(f"no training forward was captured since the last step{self._why_none()}")
        if current.by_model and not current.finished:
            raise CaptureError("the model's last training forward did not finish, so its states cannot be used")
        missing = [index for index in self._blocks if index not in current.outputs]
        if missing:
            numbers = ", ".join(str(index + 1) for index in missing)
            raise CaptureError(
                f"block {numbers} did not run in the last training forward, or ran without its hooks "
                "(a compiled graph from before attach(), or a copy of the block): attach before the first compiled "
                "call, or call torch._dynamo.reset() after attaching"
            )
        if current.repeated is not None:
            raise CaptureError(
                f"block {current.repeated + 1} ran more than once in one training forward; LayerSync needs the one "
                "output that the loss depends on"
            )
        return self._read(current)

    def discard(self) -> None:
        """Forget the last forward, or the chosen one."""
        if self._chosen is None:
            self._pass = self._embedded = None
            self._earlier.clear()
        self._chosen = None
        self._clear()

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Begin a forward of the model that began before these hooks were there."""
        self._on_model_enter(module, args, kwargs)

    def keep_several(self) -> None:
        """Keep every training forward until its graph is gone or one is chosen, instead of refusing a second one.

        For a host that cannot say which of its forwards are to be left alone, and finds that out from the loss.
        """
        self._several = True
        self._handles.append(self._last.register_forward_hook(_Hook(self._on_last_block)))

    @property
    def passes(self) -> list[Pass]:
        """The training forwards that a loss may still depend on, in order."""
        self._earlier = [held for held in self._earlier if not held.dead]
        current = self._pass
        usable = current is not None and not current.dead and self._complete(current)
        return [*self._earlier, *([current] if usable and current is not None else [])]

    def choose(self, chosen: Pass, others: Collection[Pass]) -> None:
        """Let ``collect`` read one of the passes, and forget others."""
        gone = {chosen, *others}
        self._earlier = [held for held in self._earlier if held not in gone]
        if self._pass in gone:
            self._pass = None
        self._chosen = chosen

    @property
    def why_none(self) -> str:
        """Why there is no forward to use, in a sentence; empty when there is one."""
        return "" if self._pass or self._earlier else f"no training forward was captured{self._why_none()}"

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the forwards inside the context alone."""
        self._pauses += 1
        try:
            yield
        finally:
            self._pauses -= 1

    def remove(self) -> None:
        """Take every hook off the model."""
        if self._handles:
            disallow_checkpointed_hooks()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.discard()

    def _why_none(self) -> str:
        if self._skipped:
            return f": the last forward ran {self._skipped}"
        return (
            ": the attached model did not run, or ran without its hooks (a copy of the model, a graph compiled before "
            "attach(), checkpointed blocks called one by one), or apply() was called twice for one forward; attach to "
            "the model that is trained, before compiling it"
        )

    def _opens(self) -> bool:
        if not self.enabled:
            self._skipped = "after the end of the schedule"
            return False
        # Grad mode, not module.training: several trainers train in eval mode.
        if not torch.is_grad_enabled():
            self._skipped = "under torch.no_grad()"
        elif self._pauses:
            self._skipped = "inside paused()"
        elif _inside_transform():
            self._skipped = "under torch.func, whose gradients no loss outside of it has"
        elif not _inside_backward():
            return True
        return False

    def _open(self, new: Pass) -> None:
        held = self._pass
        if held is not None and self._complete(held):
            if not self._several:
                raise CaptureError(SECOND_FORWARD)
            self._earlier = [*(earlier for earlier in self._earlier if not earlier.dead), held][-_KEPT:]
        self._pass, self._skipped = new, ""

    def _complete(self, held: Pass) -> bool:
        # Blocks called one by one do not say that they raised, but without all asked layers it could never be used.
        return held.finished if held.by_model else len(held.outputs) == len(self._blocks)

    def _on_model_enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if module is self._model and self._opens():
            self._open(Pass(args, kwargs, by_model=True))

    def _on_model_leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        current = self._pass
        if module is not self._model or current is None or not current.by_model or current.finished:
            return
        if output is None:  # torch's sign that the forward raised
            self._pass = None
        else:
            current.finished = True
            if self._several:
                self._mark(current, output)

    def _on_last_block(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        current = self._pass
        if module is self._last and current is not None and not current.by_model and not _inside_backward():
            self._mark(current, output)

    def _mark(self, current: Pass, output: Any) -> None:
        # A compiled graph has one node for all it returns, so the stored states tell as much as a mark would.
        if not torch.compiler.is_compiling():
            # Whatever this forward left behind is of no use without its graph, and would be all that is left of it.
            current.end = mark(output, current.outputs.clear)
            if current.end is None:
                self._pass, self._skipped = None, "without anything trainable in it"

    def _on_first_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current = self._pass
        if module is not self._first or (current is not None and current.by_model and not current.finished):
            return
        if self._opens():
            self._open(Pass(args, kwargs, embedded=self._embedded))
            self._embedded = None
        elif current is not None:
            # Blocks called one by one have no end that could be seen; a forward that is not for training is one.
            current.finished = True

    def _on_embedder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        current = self._pass
        if module is not self._embedder:
            return
        if current is not None and current.by_model and not current.finished:
            current.embedded = output
        elif self._opens():
            # Without the model's forward, an embedder that runs now belongs to whatever forward comes next.
            self._embedded = output

    def store(self, index: int, output: Any) -> None:
        """Keep what a block returned, inside an open pass."""
        current = self._pass
        if current is None or current.finished or (not current.by_model and _inside_backward()):
            return
        if index in current.outputs:
            current.repeated = index
        current.outputs[index] = output


def _inside_backward() -> bool:
    # Recomputation by a checkpoint runs the hooks again, with gradients on. A compiled graph has no such calls, and
    # the question itself would break it.
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _inside_transform() -> bool:
    return not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None


def hook(run: Callable[..., None]) -> Callable[..., None]:
    """Return a hook that runs a function and that a copy of the model does not inherit."""
    return _Hook(run)


class _Hook(partial[None]):
    """A hook that a copy of the model does not inherit: ``deepcopy`` and pickling leave an inert one behind."""

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _make_inert, ()


class _Store:
    """Store the output of one block."""

    def __init__(self, capture: Capture, index: int, block: nn.Module) -> None:
        self._capture, self._index, self._block = capture, index, block

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if module is self._block:
            self._capture.store(self._index, output)


def _inert(*args: Any) -> None:
    """Do nothing."""


def _make_inert() -> Callable[..., None]:
    return _inert
