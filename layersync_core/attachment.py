"""What ``attach`` returns: the terms of a model's regularizers, added to a loss."""

# Longer than others: what attach returns is one object, whose promises are read together.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from layersync_core.capture.buffer import HiddenStateBuffer
from layersync_core.capture.forward import Forward
from layersync_core.capture.guard import Guard
from layersync_core.capture.policy import Policy, only_forward
from layersync_core.capture.states import HiddenStates, choose_generated, require_tokens
from layersync_core.capture.trained import Way
from layersync_core.errors import CaptureError, ConfigError
from layersync_core.families.asking import start_capture
from layersync_core.families.registry import resolve
from layersync_core.inputs import check_batch, check_main_loss, sample_weights, whole_step
from layersync_core.losses.enabled import Enabled
from layersync_core.losses.parts import TrainedParts
from layersync_core.metrics import Meter, total
from layersync_core.protocol import Adapter, Block, CaptureHandle, Regularizer
from layersync_core.suggest.probe import TOKENS, Probe

attached: WeakSet[nn.Module] = WeakSet()
"""The models that have an attachment."""


class Attachment:
    """What ``attach`` returns: add the terms to a loss, read the metrics, and take everything off again.

    Attributes:
        blocks: Every block of the model in execution order.
        family: Id of the model's family; None when no regularizer is enabled.
        parts: The trainable parts of the regularizers, watched.
        guard: Compares the tokens that count with those that the main loss trains; None where that is switched off.
        uses_steps: A regularizer depends on the optimiser step, so that somebody must count it.
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: Adapter | None,
        blocks: list[Block],
        regularizers: Sequence[Regularizer],
        policy: Policy,
        guarded: bool = True,
        generated: int | None = None,
    ) -> None:
        self.blocks = blocks
        self.family = adapter.family if adapter else None
        self._model, self._adapter = model, adapter
        self._regularizers = [Enabled.of(item, blocks) for item in regularizers]
        self.uses_steps = any(item.uses_steps for item in self._regularizers)
        self._meter = Meter()
        self._generated = generated
        self._step = 0
        self._begun = False
        self._ways: dict[int, Way] = {}
        self._modules = nn.ModuleDict()
        self._capture: CaptureHandle | None = None
        self.guard: Guard | None = None
        layers = {layer for item in self._regularizers for layer in item.layers}
        for item in self._regularizers:
            if item.module is not None:
                self._modules[item.item.name] = item.module.to(_device_of(model))
        self.parts = TrainedParts(model, dict(self._modules.items()))
        if adapter is None:
            return
        self.guard = Guard(blocks[-1], adapter.family) if guarded else None
        self._buffer = HiddenStateBuffer(layers)
        self._capture = start_capture(adapter, model, layers, self._buffer)
        self._capture.policy = policy
        attached.add(model)
        try:
            self.gate(self._step)
        except BaseException:
            self.remove()
            raise

    def apply(self, loss: Tensor, *, step: int | None = None, sample_weight: Tensor | None = None) -> Tensor:
        """Return the main loss plus every term, and consume the step's states.

        Under gradient accumulation pass the undivided loss and divide the result.

        Args:
            loss: Main loss, a scalar of real numbers.
            step: Optimiser step for the schedules, from 0; default: the number of calls so far.
            sample_weight: (B,) tensor of finite weights from 0, by which the host multiplied the samples of its loss.

        Raises:
            CaptureError: No training forward was captured since the last call, or its states cannot be used.
            ConfigError: The loss, the step or the weights are not what is said above, or student and teacher have
                different shapes. The forward is forgotten.
        """
        if not self._regularizers:
            return loss
        term = self._consume(step, sample_weight, None, partial(check_main_loss, loss))
        return loss if term is None else loss + term.to(loss.device)

    def loss(
        self, *, step: int | None = None, sample_weight: Tensor | None = None, forward: Forward | None = None
    ) -> Tensor:
        """Return the sum of the terms alone, an fp32 scalar; otherwise like ``apply``.

        Args:
            step: As for ``apply``.
            sample_weight: As for ``apply``.
            forward: One of ``forwards``, which alone is consumed; default: the only one there is.
        """
        term = self._consume(step, sample_weight, forward) if self._regularizers else None
        return torch.zeros((), device=_device_of(self._model)) if term is None else term

    @property
    def forwards(self) -> Sequence[Forward]:
        """The training forwards that wait for their loss, in order."""
        return self._capture.forwards if self._capture is not None else ()

    def forget(self, forward: Forward) -> None:
        """Leave one of ``forwards`` without a loss."""
        if self._capture is not None:
            self._capture.discard(forward)

    @property
    def why_none(self) -> str:
        """Why there was no training forward to wait for its loss, in a clause; empty where there was one."""
        why = "" if self._capture is None or self._capture.forwards else self._capture.why_none
        return f"no training forward was captured: {why}" if why else ""

    def metrics(self) -> dict[str, Tensor]:
        """Return this rank's means since the last read, detached and still on the device; empty when there are none."""
        return self._meter.read()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the forwards inside the context alone: further forwards of the same step."""
        if self._capture is None:
            yield
        else:
            with self._capture.paused():
                yield

    def probe(self, tokens: int = TOKENS, seed: int = 0) -> Probe:
        """Measure from now on how alike all blocks are in each training forward, with or without a regularizer.

        Args:
            tokens: Tokens of the sub-sample of one forward.
            seed: Of the sub-samples.

        Raises:
            LayerSyncError: As for ``attach``, where LayerSync is off and the family was not resolved yet.
        """
        return Probe(self._model, self._adapter or resolve(self._model), tokens, seed)

    def remove(self) -> None:
        """Take every hook off the model; ``apply`` and ``loss`` raise from then on."""
        if self._capture is not None:
            self._capture.remove()
            self._capture = None
            attached.discard(self._model)
        self.parts.remove()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    @property
    def pairs(self) -> list[Any]:
        """The resolved pairs: ``student``, ``teacher`` and ``weight`` of each."""
        return [pair for item in self._regularizers for pair in item.pairs]

    @property
    def student(self) -> Block | None:
        """The student block of the first pair."""
        return self.pairs[0].student if self.pairs else None

    @property
    def teacher(self) -> Block | None:
        """The teacher block of the first pair."""
        return self.pairs[0].teacher if self.pairs else None

    def describe(self) -> list[str]:
        """Return what is attached, in lines for a terminal."""
        if not self.family:
            return ["LayerSync is off"]
        told = [line for item in self._regularizers for line in item.describe()]
        return [f"family: {self.family}", *told, *(["guard: off"] if self.guard is None else [])]

    @property
    def due(self) -> bool:
        """Whether a regularizer still has a weight, so that training forwards are held."""
        return self._capture is not None and self._capture.enabled

    def modules(self) -> nn.ModuleDict:
        """Return the trainable parts of the regularizers by name, for the optimiser."""
        return self._modules

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's step and the trainable parts, for a checkpoint."""
        return {"version": 1, "step": self._step, "modules": {k: m.state_dict() for k, m in self._modules.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ConfigError: It is of another version, or its trainable parts are not those of this attachment.
        """
        known = isinstance(state, Mapping) and state.get("version") == 1
        parts = state.get("modules") if known else None
        step = state.get("step") if known else None
        if not isinstance(parts, Mapping) or not isinstance(step, int) or step < 0:
            raise ConfigError("this is no state of a LayerSync attachment, or one of another version")
        if set(parts) != set(self._modules):
            raise ConfigError(
                f"the state has trainable parts {sorted(parts)}, this attachment has {sorted(self._modules)}"
            )
        for name, module in self._modules.items():
            try:
                module.load_state_dict(parts[name])
            except RuntimeError as error:
                raise ConfigError(f"the state of {name} does not fit: {' '.join(str(error).split())}") from None
        self._step = step
        self.gate(self._step)

    def _consume(
        self,
        step: int | None,
        sample_weight: Tensor | None,
        forward: Forward | None,
        check: Callable[[], None] | None = None,
    ) -> Tensor | None:
        capture = self._capture
        if capture is None:
            raise CaptureError("this attachment was removed from its model; attach again to go on with LayerSync")
        if torch.compiler.is_dynamo_compiling():
            # Where the compiler may leave its graph it runs this uncompiled instead; with fullgraph=True it reports the
            # text, of a plain exception alone, since it cannot trace how one of ours is made.
            raise RuntimeError(
                "torch.compile(fullgraph=True) cannot trace the checks of a term: call apply() and loss() outside of "
                "the compiled function, on what it returns"
            )
        now, read = None, None
        try:
            if check is not None:
                check()
            now = self._step if step is None else whole_step(step)
            weight_B = None if sample_weight is None else sample_weights(sample_weight)
            active = [item for item in self._regularizers if item.active(now)]
            if not active:
                return None
            if not torch.is_grad_enabled():
                raise CaptureError("the loss was asked for under torch.no_grad(), where it would have no gradient")
            read = only_forward(capture) if forward is None else forward
            capture.collect(read)
            terms = self._terms(active, read, weight_B, now)
            return total(terms) if terms else None
        finally:
            # Also where it failed: a program that catches this would be refused its next forward for another reason.
            capture.discard(forward)
            if read is not None:
                read.release()
            if now is not None:
                self._step = now + 1
                # Further micro-batches of a step that the host counts come with the same number.
                self.gate(self._step if step is None else now)

    def _terms(self, active: list[Enabled], forward: Forward, weight_B: Tensor | None, step: int) -> list[Tensor]:
        if self._generated is not None:
            choose_generated(forward, self._buffer, self._generated)
        require_tokens(forward)
        if weight_B is not None:
            check_batch(weight_B, len(next(iter(self._buffer.values()))))
        if not self._begun:
            self._begin()
        else:
            self.parts.check()
        check = self.guard.begin(forward, self._buffer) if self.guard is not None else None
        states = HiddenStates(self._model, forward, self._buffer, self.blocks, self._meter, weight_B, self._ways)
        terms = []
        for item in active:
            states.reader = item.item.name
            term = item.term(states, step)
            if term is None:
                continue
            for name, value in term.metrics.items():
                self._meter.add(name, value, states.reader)
            terms.append(term.loss)
        if check is not None:
            check.choose(forward, "all" if states.sets == {"all"} else "target")
        return terms

    def _begin(self) -> None:
        self._begun = True
        self.parts.begin()
        for item in self._regularizers:
            item.begin(self._model)

    def gate(self, step: int) -> None:
        """Stop the capture if no regularizer is due at an optimiser step or later, and start it if one is."""
        # Past the end of every schedule nothing is captured, so that a term that is over costs nothing.
        if self._capture is not None:
            self._capture.enabled = any(item.active(step) for item in self._regularizers)


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
