"""Hooks that store what the asked blocks return during the one training forward of a step.

Two rules make this hold under gradient checkpointing: a hook stores the raw object that the block returned and does
nothing else with it (under re-entrant checkpointing that very object gets its ``grad_fn`` after the hook has run, a
slice made of it in the hook never does), and hooks store only inside an open pass (a recomputation during backward
runs them again).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from layersync_core.errors import CaptureError
from layersync_core.protocol import Tokens

SECOND_FORWARD = (
    "a second training forward ran before the states of the first were used, and nobody can know which one was meant: "
    "call apply() after each training forward, and run further forwards under torch.no_grad() or "
    "inside `with attachment.paused():`"
)


@dataclass
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
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    by_model: bool = False
    finished: bool = False
    outputs: dict[int, Any] = field(default_factory=dict)
    embedded: Any = None
    repeated: int | None = None


class Capture:
    """A running capture on one model; implements ``CaptureHandle``.

    Args:
        model: The unwrapped model.
        blocks: ``layer index -> block`` for the asked layers.
        first: The model's first block.
        embedder: The patch embedder, whose output's length is the number of image tokens; None if not needed.
        read: Turns a finished pass into tokens and fills the buffer.
        clear: Empties the buffer.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[int, nn.Module],
        first: nn.Module,
        embedder: nn.Module | None,
        read: Callable[[Pass], Tokens],
        clear: Callable[[], None],
    ) -> None:
        self.enabled = True
        self._model, self._first, self._embedder = model, first, embedder
        self._blocks, self._read, self._clear = blocks, read, clear
        self._pass: Pass | None = None
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

    def collect(self) -> Tokens:
        """Put the states of the last training forward into the buffer.

        Raises:
            CaptureError: There was none, it did not finish, or an asked block did not run in it exactly once.
        """
        current = self._pass
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
        """Forget the last forward."""
        self._pass = self._embedded = None
        self._clear()

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
        elif not _inside_backward():
            return True
        return False

    def _open(self, new: Pass) -> None:
        held = self._pass
        # Blocks called one by one do not say that they raised, but without all asked layers it could never be used.
        if held is not None and (held.finished if held.by_model else len(held.outputs) == len(self._blocks)):
            raise CaptureError(SECOND_FORWARD)
        self._pass, self._skipped = new, ""

    def _on_model_enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
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


class _Hook:
    """A hook that a copy of the model does not inherit: ``deepcopy`` and pickling leave an inert one behind."""

    def __init__(self, run: Callable[..., None]) -> None:
        self._run = run

    def __call__(self, *args: Any) -> None:
        self._run(*args)

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
