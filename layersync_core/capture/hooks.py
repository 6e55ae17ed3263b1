"""Hooks that store what the requested blocks return during training forwards.

Two rules make this work under gradient checkpointing. A hook stores the raw object that the block returned and does
nothing else with it: under re-entrant checkpointing that very object gets its ``grad_fn`` after the hook has run, and
a slice taken in the hook never would. And hooks store only inside an open forward, since a recomputation during
backward runs them again.
"""

# Longer than others: the hooks of one capture share its state.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any
from weakref import finalize

import torch
from torch import nn

from layersync_core import _compat
from layersync_core.capture.compiling import let_hooks_compile, stop_hooks_compiling
from layersync_core.capture.forward import Forward
from layersync_core.capture.identity import is_same
from layersync_core.capture.lengths import shapes_of
from layersync_core.capture.opening import Opening
from layersync_core.capture.reading import Reader
from layersync_core.errors import CaptureError
from layersync_core.protocol import CaptureHandle


class Capture(Opening):
    """A running capture on one model; implements ``CaptureHandle``.

    Args:
        model: The unwrapped model.
        blocks: ``layer index -> block`` for the requested layers.
        first: The model's first block.
        last: The model's last block.
        later: Blocks that may run after it and that the adapter does not list.
        embedder: The patch embedder, whose output's length is the number of image tokens; None if not needed.
        reader: Says what the tokens of a finished forward are, and fills the buffer.
        clear: Empties the buffer.
        dual: The block whose streams are joined after it; None if not needed.

    Attributes:
        watch: If set, called with each block's number as it returns; the block's output is then not held.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Mapping[int, nn.Module],
        first: nn.Module,
        last: nn.Module,
        later: Sequence[nn.Module],
        embedder: nn.Module | None,
        reader: Reader,
        clear: Callable[[], None],
        dual: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.policy: Callable[[CaptureHandle], None] = _any_number
        self.watch: Callable[[Forward, int], None] | None = None
        self._model, self._first, self._last, self._embedder, self._dual = model, first, last, embedder, dual
        self.reader = reader
        self._blocks, self._clear = blocks, clear
        self._held: list[Forward] = []
        self._open: Forward | None = None
        self._embedded: Any = None  # for the next blocks that are called one by one
        self._handles = [
            model.register_forward_pre_hook(_Hook(self._on_model_enter), with_kwargs=True),
            # Always called, so that a forward that raises is forgotten at once.
            model.register_forward_hook(_Hook(self._on_model_leave), always_call=True),
            first.register_forward_pre_hook(_Hook(self._on_first_block), with_kwargs=True),
            last.register_forward_hook(_Hook(self._on_last_block), with_kwargs=True),
        ]
        for module in later:
            self._handles.append(module.register_forward_hook(_Hook(self._on_later_block)))
        if embedder is not None:
            self._handles.append(embedder.register_forward_hook(_Hook(self._on_embedder)))
        if dual is not None:
            self._handles.append(dual.register_forward_hook(_Hook(self._on_dual)))
        for index, block in blocks.items():
            self._handles.append(block.register_forward_hook(_Hook(_Store(self, index, block))))
        let_hooks_compile()
        # The hooks on the model hold this capture, so this runs at the latest when the model is dropped.
        self._stop_compiling = finalize(self, stop_hooks_compiling)
        self._stop_compiling.atexit = False

    @property
    def forwards(self) -> list[Forward]:
        """The whole training forwards that are held and that a loss may still depend on, in order."""
        current = self._open
        held = [*self._held, current] if current is not None and self._whole(current) else self._held
        return [forward for forward in held if not forward.dead] if held else []

    @property
    def layers(self) -> list[int]:
        """The requested layers."""
        return list(self._blocks)

    @property
    def untouched(self) -> bool:
        """Whether no forward was ever seen."""
        return self._open is None and not self._skipped

    @property
    def why_none(self) -> str:
        """Why there isn't a forward to read, as a clause; empty where there is or was one."""
        current = self._open
        if current is not None:
            return "" if current.dead else self._fault(current)
        if self._skipped:
            return f"the last forward ran {self._skipped}"
        return (
            "the attached model did not run, or ran without its hooks (a copy of the model, a graph compiled before "
            "attach(), checkpointed blocks called one by one), or apply() was called twice for one forward; attach to "
            "the model that is trained, before compiling it"
        )

    def collect(self, forward: Forward) -> None:
        """Put the states of a forward into the buffer, and set in the forward what its tokens are.

        Raises:
            CaptureError: A requested block did not run in it exactly once, or its tokens cannot be identified.
        """
        self.reader.blocks.check()
        if fault := self._fault(forward):
            raise CaptureError(fault)
        self.reader.read(forward)

    def discard(self, forward: Forward | None = None) -> None:
        """Forget a forward, or all of them, and empty the buffer."""
        if forward is None:
            self._open = self._embedded = None
            self._held.clear()
        elif forward is self._open:
            self._open = None
        else:
            self._held = [held for held in self._held if held is not forward]
        self._clear()

    def remove(self) -> None:
        """Take every hook off the model."""
        self._stop_compiling()  # does nothing after the first call
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.discard()

    def _fault(self, forward: Forward) -> str:
        """Return why a forward cannot be read; empty where it can."""
        if forward.by_model and not forward.finished:
            return "the model's last training forward did not finish, so its states cannot be used"
        if missing := self._blocks.keys() - forward.outputs.keys():
            return self._why_missing(sorted(missing), bool(forward.outputs))
        if forward.repeated is not None:
            return (
                f"block {forward.repeated + 1} ran more than once in one training forward; LayerSync needs a single "
                "output that the loss depends on"
            )
        return ""

    def _why_missing(self, missing: Sequence[int], others_ran: bool) -> str:
        what = f"block {', '.join(str(index + 1) for index in missing)} did not run in the last training forward"
        compiled = any(map(_compat.was_compiled, (self._model, *(self._blocks[index] for index in missing))))
        hookless = (
            "ran without its hooks (a compiled graph from before attach(), or a copy of the block): attach before the "
            "first compiled call, or call torch._dynamo.reset() after attaching"
        )
        if compiled and not others_ran:
            return f"{what}, or {hookless}"
        skipped = (
            "it was skipped (skip_layers, layer dropping), or its parts, or a copy of it, ran in its place; choose "
            "blocks that every training forward calls"
        )
        return f"{what}: {skipped}{f'; or it {hookless}' if compiled else ''}"

    def _whole(self, forward: Forward) -> bool:
        # Blocks called one by one do not show that they raised, but a forward without all requested layers is useless.
        return forward.finished if forward.by_model else len(forward.outputs) == len(self._blocks)

    def adopt(self, forwards: Sequence[Forward]) -> None:
        """Hold forwards that were recorded before the blocks were known.

        Args:
            forwards: Finished ones, with what the requested blocks returned in them.
        """
        self._held += forwards

    def _begin(self, new: Forward) -> None:
        current = self._open
        if current is not None:
            self._held = [held for held in (*self._held, current) if not held.dead and self._whole(held)]
            self._open = None
        self.policy(self)
        self._open, self._skipped = new, ""

    def _on_model_enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if is_same(module, self._model) and self._opens():
            self._begin(Forward(args=args, kwargs=kwargs, by_model=True))

    def _on_model_leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        current = self._open
        if current is None or not is_same(module, self._model) or not current.by_model or current.finished:
            return
        if output is None:  # torch's sign that the forward raised
            self._open = None
        else:
            current.finished = True

    def _on_first_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current = self._open
        if not is_same(module, self._first) or (current is not None and current.by_model and not current.finished):
            return
        if self._opens():
            self._begin(Forward(args=args, kwargs=kwargs, embedded=self._embedded))
            self._embedded = None
        elif current is not None:
            # Blocks called one by one have no visible end; a forward that isn't for training marks it.
            current.finished = True

    def _on_embedder(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        current = self._open
        if self._embedder is None or not is_same(module, self._embedder):
            return
        if self.watch is not None and isinstance(output, torch.Tensor):
            output = torch.empty_like(output, device="meta")  # only its shape is needed
        if current is not None and current.by_model and not current.finished:
            current.embedded = output
        elif self._opens():
            # Without the model's forward, an embedder that runs now belongs to whatever forward comes next.
            self._embedded = output

    def _on_last_block(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        current = self._open
        if current is not None and is_same(module, self._last) and _runs(current):
            # Not by |=, which the compiler of torch 2.4 doesn't know.
            current.beside["last"] = output
            current.beside["given"] = (args, kwargs)

    def _on_later_block(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        current = self._open
        if current is not None and "last" in current.beside and _runs(current):
            current.beside["later"] = output

    def _on_dual(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        current = self._open
        if current is not None and self._dual is not None and is_same(module, self._dual) and _runs(current):
            current.streams = shapes_of(output)

    def store(self, index: int, output: Any) -> None:
        """Keep what a block returned, inside an open forward."""
        current = self._open
        if current is None or not _runs(current):
            return
        if index in current.outputs:
            current.repeated = index
        current.outputs[index] = output
        if self.watch is not None:
            self.watch(current, index)
            current.outputs[index] = None  # only records that it ran


def _runs(forward: Forward) -> bool:
    # Recomputation by a checkpoint runs the hooks again, with gradients on; a compiled graph has no such calls.
    return not forward.finished and (forward.by_model or torch.compiler.is_compiling() or not _compat.inside_backward())


def _any_number(handle: CaptureHandle) -> None:
    """Hold any number of forwards."""


def hook(run: Callable[..., None]) -> Callable[..., None]:
    """Return a hook that runs a function and that a copy of the model does not inherit."""
    return _Hook(run)


class _Hook(partial[None]):
    """A hook that a copy of the model does not inherit: ``deepcopy`` and pickling leave an inert one behind."""

    def __reduce__(self) -> tuple[type[partial[None]], tuple[Any, None]]:
        # The standard library's do-nothing callable, so that a saved model loads where this package isn't installed.
        return partial, (nullcontext.__exit__, None)


class _Store:
    """Store the output of one block."""

    def __init__(self, capture: Capture, index: int, block: nn.Module) -> None:
        self._capture, self._index, self._block = capture, index, block

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if is_same(module, self._block):
            self._capture.store(self._index, output)
