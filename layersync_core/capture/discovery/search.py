"""A capture that does not know the blocks yet: it records whole training forwards, until a loss shows what they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core import _compat
from layersync_core.capture.discovery.discover import measure
from layersync_core.capture.discovery.found import Discovery
from layersync_core.capture.discovery.record import Recorder, Recording
from layersync_core.capture.forward import Forward
from layersync_core.capture.hooks import Capture, hook
from layersync_core.capture.identity import is_same
from layersync_core.capture.lengths import refuse_split, shapes_of
from layersync_core.capture.opening import Opening
from layersync_core.capture.policy import exactly_one
from layersync_core.errors import CaptureError
from layersync_core.protocol import Block, CaptureHandle

log = logging.getLogger(__name__)

_TRIES = 8
_RECORDING = "recording"
_FIRST = (
    "discover it in a plain process first (layersync inspect MODEL --inputs FILE --save adapter.json, or attach() "
    "there with family auto), and give that file as the family"
)


class Search(Opening):
    """A capture of a model whose blocks are not known yet; implements ``CaptureHandle``.

    Args:
        model: The unwrapped model.

    Raises:
        CaptureError: It cannot be discovered in its current state.
    """

    def __init__(self, model: nn.Module) -> None:
        refuse(model)
        super().__init__()
        self.policy: Callable[[CaptureHandle], None] = exactly_one
        self._model = model
        self._held: list[Forward] = []
        self._open: Forward | None = None
        self._tries = 0
        self._recorder = Recorder(model)
        self._handles = [
            model.register_forward_pre_hook(hook(self._on_enter), with_kwargs=True),
            model.register_forward_hook(hook(self._on_leave), always_call=True),
        ]

    @property
    def forwards(self) -> list[Forward]:
        """The whole training forwards that are held and that a loss may still depend on, in order."""
        return [forward for forward in self._held if not forward.dead]

    @property
    def why_none(self) -> str:
        """Why there isn't a forward to read, as a clause; empty where there is or was one."""
        if self._held:
            return ""
        if self._tries:
            return (
                f"{self._tries} of its losses sent no gradient to its blocks (a loss that is scaled to zero, or is "
                "NaN), so family auto has found nothing yet; an adapter file of an earlier run, or an adapter, works "
                "without such a loss"
            )
        if self._skipped:
            return f"the last forward ran {self._skipped}"
        return (
            "the attached model did not run as a whole, which discovery requires (a program that calls its blocks one "
            "by one needs an adapter), or it ran compiled or as a copy"
        )

    def collect(self, forward: Forward) -> None:
        """Refuse to read a forward whose blocks are not known.

        Raises:
            CaptureError: Always.
        """
        raise CaptureError(
            "family auto finds the blocks and tokens from the main loss: pass it, with apply(loss) or loss(main=loss), "
            "at least in the first step"
        )

    def discard(self, forward: Forward | None = None) -> None:
        """Forget a forward, or all of them."""
        gone = [*self._held] if forward is None else [forward]
        for item in gone:
            item.beside.clear()
        self._held = [item for item in self._held if item not in gone]

    def remove(self) -> None:
        """Take every hook off the model, and drop what was recorded."""
        self._recorder.remove()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.discard()
        self._open = None

    def find(self, forward: Forward, loss: Tensor | None) -> Discovery | None:
        """Return what a forward and its loss show; None while no gradient shows anything.

        Raises:
            CaptureError: The loss is missing, the model cannot be discovered in its current state, or many losses have
                shown nothing.
        """
        if loss is None:
            self.collect(forward)
            return None
        refuse(self._model)
        with self.paused():  # it may run the model once more
            found = measure(self._model, self.recording(forward), loss)
        self._tries += found is None
        if self._tries == _TRIES:
            raise CaptureError(
                f"in {_TRIES} forwards no gradient of the main loss arrived at a block of {type(self._model).__name__} "
                "(a loss that does not depend on what it returns, is scaled to zero or is not finite), so its "
                "blocks and tokens cannot be found; write an adapter that names them"
            )
        if self._tries == 1 and found is None:
            log.warning(
                "the gradient of the main loss at the blocks of %s is still zero or not finite, so LayerSync waits for "
                "a later forward",
                type(self._model).__name__,
            )
        return found

    def release(self) -> list[Forward]:
        """Return the forwards that are held, and stop holding them."""
        held, self._held = self.forwards, []
        return held

    @staticmethod
    def recording(forward: Forward) -> Recording:
        """Return what was recorded of a forward."""
        found: Recording = forward.beside[_RECORDING]
        return found

    def _on_enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if not is_same(module, self._model):
            return
        self._recorder.end()
        self._open = None
        if torch.compiler.is_compiling():
            self._skipped = f"compiled, so that its blocks cannot be seen one by one: {_FIRST}"
            return
        if not self._opens():
            return
        refuse_split([module])
        self.policy(self)
        recording = Recording(args=args, kwargs=kwargs, autocast=_autocast(module))
        self._open = Forward(args=args, kwargs=kwargs, by_model=True, beside={_RECORDING: recording})
        self._recorder.begin(recording)

    def _on_leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        current = self._open
        if current is None or not is_same(module, self._model):
            return
        self._recorder.end()
        self._open = None
        if output is not None:  # torch's sign that the forward raised
            current.finished = True
            self.recording(current).output = output
            self._held = [*self.forwards, current]


def refuse(model: nn.Module) -> None:
    """Refuse to discover a model whose blocks cannot be measured as they are.

    Raises:
        CaptureError: The model is compiled, or its parameters are sharded.
    """
    for name, module in model.named_modules():
        kinds = {base.__name__ for base in type(module).__mro__}
        if _compat.is_compiled(module) or "OptimizedModule" in kinds:
            raise CaptureError(
                f"{type(model).__name__} is compiled{f' at {name}' if name else ''}, so its blocks cannot be measured: "
                f"{_FIRST}; or compile after the first step"
            )
        if kinds & {"FSDPModule", "FullyShardedDataParallel"}:
            raise CaptureError(f"{type(model).__name__} is sharded by FSDP, where blocks are not measured: {_FIRST}")
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh"):
            raise CaptureError(
                f"the parameters of {type(model).__name__} are sharded (DeepSpeed ZeRO-3, DTensor), where blocks are "
                f"not measured: {_FIRST}"
            )


def _autocast(model: nn.Module) -> tuple[str, torch.dtype] | None:
    kind = next((tensor.device.type for tensor in model.parameters()), "cpu")
    return (kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None


def hand_over(search: Search, capture: CaptureHandle, blocks: Sequence[Block], embedder: str | None) -> None:
    """Hand the forwards that a search holds over to the capture that replaces it, and remove the search.

    Args:
        search: The search.
        capture: The capture of the blocks that were found.
        blocks: All blocks that were found.
        embedder: Path of the module that counts the tokens.
    """
    assert isinstance(capture, Capture)
    dual = capture.reader.dual
    held = search.release()
    for forward in held:
        recording = Search.recording(forward)
        runs = {run.name: run for run in (*recording.outside, *recording.blocks)}
        forward.beside.clear()
        last = runs.get(blocks[-1].path)
        if last is not None:
            forward.beside |= {"last": last.output, "given": last.given}
        for index in capture.layers:
            if blocks[index].path in runs:
                forward.outputs[index] = runs[blocks[index].path].output
        if embedder in runs:
            forward.embedded = runs[embedder].output
        if dual is not None and blocks[dual.index].path in runs:
            forward.streams = shapes_of(runs[blocks[dual.index].path].output)
    capture.adopt(held)
    search.remove()
