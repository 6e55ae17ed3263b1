"""What ``attach`` returns: the terms of a model's regularizers, added to a loss."""

# Longer than others: what attach returns is one object, whose promises are read together.

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from layersync_core.capture.buffer import HiddenStateBuffer
from layersync_core.capture.discovery.found import Discovery
from layersync_core.capture.discovery.search import Search, hand_over
from layersync_core.capture.forward import Forward
from layersync_core.capture.guard import Guard
from layersync_core.capture.marking import Marking
from layersync_core.capture.policy import Policy, only_forward
from layersync_core.capture.states import HiddenStates, choose_generated, require_tokens
from layersync_core.capture.trained import Way
from layersync_core.distributed import first_rank
from layersync_core.entrypoints import Provider
from layersync_core.errors import CaptureError, ConfigError
from layersync_core.families.asking import blocks_of, is_measured, start_capture
from layersync_core.families.discovered import AUTO, adapter_of, save_adapter
from layersync_core.families.registry import resolve
from layersync_core.inputs import check_batch, check_main_loss, sample_weights, whole_step
from layersync_core.losses.enabled import Enabled
from layersync_core.losses.parts import TrainedParts, refuse_parts
from layersync_core.metrics import Meter, total
from layersync_core.participants import Record, changed, taking_part
from layersync_core.protocol import Adapter, Block, CaptureHandle, Regularizer
from layersync_core.suggest.probe import TOKENS, Probe

log = logging.getLogger(__name__)

attached: WeakSet[nn.Module] = WeakSet()
"""The models that have an attachment."""


class Attachment:
    """What ``attach`` returns: adds the terms to a loss, gives the metrics, and can be removed again.

    Attributes:
        blocks: Every block of the model in execution order.
        family: Id of the model's family; None when no regularizer is enabled.
        parts: The trainable parts of the regularizers.
        guard: Compares the tokens that count with those that the main loss trains; None where that is switched off.
        found: What discovery found in the model, with family auto; None before its first loss, and for other families.
        when_found: Called once discovery has found it.
        uses_steps: A regularizer depends on the optimiser step, so the caller must count steps.
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
        part: Mapping[str, nn.Module] = MappingProxyType({}),
        search: Search | None = None,
        plugins: Sequence[Provider] = (),
    ) -> None:
        self.blocks = blocks
        self.family = adapter.family if adapter else AUTO if search else None
        self._model, self._adapter, self._search = model, adapter, search
        self._plugins = plugins
        self._policy, self._guarded = policy, guarded
        self._regularizers = [Enabled.of(item, None if search else blocks) for item in regularizers]
        self.uses_steps = any(item.uses_steps for item in self._regularizers)
        self._meter = Meter()
        self._generated = generated
        self._step = 0
        self._only_the_term = False  # said that the main loss trains nothing
        self._begun = False
        self._ways: dict[int, Way] = {}
        self._modules = nn.ModuleDict()
        self._capture: CaptureHandle | None = search
        self.guard: Guard | None = None
        self._marking: Marking | None = None
        self.found: Discovery | None = None
        self.when_found: Callable[[], None] | None = None
        for item in self._regularizers:
            if item.module is not None:
                self._modules[item.item.name] = item.module.to(_device_of(model))
        for name, module in part.items():
            self._modules[name] = module.to(_device_of(model))
        self.parts = TrainedParts(model, dict(self._modules.items()))
        if search is not None:
            search.policy = policy
        elif adapter is None:
            return
        else:
            self._start(adapter)
        attached.add(model)
        try:
            self.gate(self._step)
        except BaseException:
            self.remove()
            raise

    def _start(self, adapter: Adapter) -> CaptureHandle:
        layers = {layer for item in self._regularizers for layer in item.layers}
        self._buffer = HiddenStateBuffer(layers)
        capture = self._capture = start_capture(adapter, self._model, layers, self._buffer)
        capture.policy = self._policy
        self.guard = Guard(self.blocks[-1], adapter.family) if self._guarded else None
        self._marking = Marking(always=True) if is_measured(adapter, self._model) else None
        return capture

    def find(self, forward: Forward, main: Tensor | None) -> bool:
        """Discover the blocks and tokens of a model of family auto, unless that has happened.

        Args:
            forward: One of ``forwards``.
            main: Its main loss, without any term; its graph is kept.

        Returns:
            Whether they are known; False where no gradient of the loss shows them yet.

        Raises:
            ConfigError: What was found is ambiguous, or does not fit the settings. The attachment is removed.
            CaptureError: The model cannot be discovered in its current state, or many forwards showed nothing.
        """
        if self._search is None:
            return True
        search = self._search
        try:
            found = search.find(forward, main)
            if found is None:
                return False
            adapter: Any = adapter_of(found)
            self._adapter = adapter
            self.blocks = blocks_of(adapter, self._model)
            self._regularizers = [Enabled.of(item.item, self.blocks) for item in self._regularizers]
            refuse_parts(self._regularizers)
            capture = self._start(adapter)
        except BaseException:
            self.remove()
            raise
        self._marking = Marking(found.measured, found.generated)
        hand_over(search, capture, self.blocks, found.embedder)
        self._search, self.found = None, found
        self.gate(self._step)
        for line in found.lines():
            log.warning("%s: %s", type(self._model).__name__, line)
        if self.when_found is not None:
            self.when_found()
        return True

    @property
    def is_searching(self) -> bool:
        """Whether the blocks and tokens have not been found yet."""
        return self._search is not None

    def save_adapter(self, path: str | Path) -> None:
        """Write what discovery found as an adapter file, JSON, which ``family`` accepts from then on.

        Raises:
            ConfigError: Nothing has been discovered, or the file cannot be written.
        """
        if self.found is None:
            raise ConfigError("nothing was discovered: family auto finds a model's blocks and tokens at its first loss")
        save_adapter(self.found, path)

    def apply(self, loss: Tensor, *, step: int | None = None, sample_weight: Tensor | None = None) -> Tensor:
        """Return the main loss plus every term, and consume the step's states.

        Under gradient accumulation pass the undivided loss and divide the result.

        Args:
            loss: Main loss, a scalar of real numbers.
            step: Optimiser step for the schedules, from 0; default: the number of calls so far.
            sample_weight: (B,) tensor of finite weights of at least 0, by which the host multiplied its loss per
                sample.

        Raises:
            CaptureError: No training forward was captured since the last call, or its states cannot be used.
            ConfigError: The loss, the step or the weights are not as described above, or student and teacher have
                different shapes. The forward is forgotten.

        Examples:
            >>> from layersync_core import attach, load_tiny
            >>> tiny = load_tiny("dit")
            >>> model = tiny.tiny_model()
            >>> config = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}
            >>> inputs = tiny.example_inputs(model, batch_size=2)
            >>> with attach(model, config) as sync:
            ...     main = model(**inputs).sample.square().mean()  # unmodified call
            ...     sync.apply(main).backward()
            >>> sorted(sync.metrics())
            ['layersync_loss', 'layersync_similarity']
        """
        if not self._regularizers:
            self._tend_parts()
            return loss
        term = self._consume(step, sample_weight, None, loss, partial(check_main_loss, loss))
        if term is None:
            return loss
        if not loss.requires_grad and not self._only_the_term:
            # Without the term, backward would fail here.
            self._only_the_term = True
            log.warning(
                "the main loss has no gradient (it was detached, or is made of constants), so LayerSync's term alone "
                "trains %s",
                type(self._model).__name__,
            )
        return loss + term.to(loss.device)

    def loss(
        self,
        *,
        step: int | None = None,
        sample_weight: Tensor | None = None,
        forward: Forward | None = None,
        main: Tensor | None = None,
    ) -> Tensor:
        """Return the sum of the terms alone, an fp32 scalar; otherwise like ``apply``.

        Args:
            step: As for ``apply``.
            sample_weight: As for ``apply``.
            forward: The one of ``forwards`` to consume; default: the only one.
            main: The main loss, needed where the tokens are measured from it (family auto).

        Examples:
            >>> from layersync_core import attach, load_tiny
            >>> tiny = load_tiny("dit")
            >>> model = tiny.tiny_model()
            >>> config = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}
            >>> inputs = tiny.example_inputs(model, batch_size=2)
            >>> with attach(model, config) as sync:
            ...     main = model(**inputs).sample.square().mean()
            ...     term = sync.loss()  # to be added to main by yourself
            >>> term.shape, term.requires_grad, bool(-0.2 <= term <= 0.2)
            (torch.Size([]), True, True)
        """
        term = self._consume(step, sample_weight, forward, main) if self._regularizers else None
        return torch.zeros((), device=_device_of(self._model)) if term is None else term

    @property
    def forwards(self) -> Sequence[Forward]:
        """The training forwards that wait for their loss, in order."""
        return self._capture.forwards if self._capture is not None else ()

    def forget(self, forward: Forward) -> None:
        """Drop one of ``forwards`` without a loss."""
        if self._capture is not None:
            self._capture.discard(forward)

    @property
    def why_none(self) -> str:
        """Why no training forward is waiting for its loss, as a clause; empty where there was one."""
        why = "" if self._capture is None or self._capture.forwards else self._capture.why_none
        return f"no training forward was captured: {why}" if why else ""

    def metrics(self) -> dict[str, Tensor]:
        """Return this rank's means since the last read, detached and still on the device; empty when there are none.

        Examples:
            >>> from layersync_core import attach, load_tiny
            >>> tiny = load_tiny("dit")
            >>> model = tiny.tiny_model()
            >>> config = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}
            >>> with attach(model, config) as sync:
            ...     _ = model(**tiny.example_inputs(model, batch_size=2))
            ...     term = sync.loss()
            ...     metrics = sync.metrics()
            >>> bool(metrics["layersync_loss"] == term)
            True
            >>> sync.metrics()  # until the next step
            {}
        """
        return self._meter.read()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Ignore the forwards inside the context, such as further forwards of the same step.

        Examples:
            >>> from layersync_core import attach, load_tiny
            >>> tiny = load_tiny("dit")
            >>> model = tiny.tiny_model()
            >>> config = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}
            >>> inputs = tiny.example_inputs(model, batch_size=2)
            >>> with attach(model, config) as sync:
            ...     main = model(**inputs).sample.square().mean()
            ...     with sync.paused():  # a second forward with gradients in the same step
            ...         main = main + model(**inputs).sample.mean()
            ...     total = sync.apply(main)
        """
        if self._capture is None:
            yield
        else:
            with self._capture.paused():
                yield

    def probe(self, tokens: int = TOKENS, seed: int = 0) -> Probe:
        """Measure from now on how similar all blocks are in each training forward, with or without a regularizer.

        Args:
            tokens: Number of tokens in the sub-sample of one forward.
            seed: Seed of the sub-samples.

        Raises:
            LayerSyncError: As for ``attach``, if LayerSync is off and the family has not been resolved yet.

        Examples:
            >>> from layersync_core import attach, load_tiny
            >>> tiny = load_tiny("dit")
            >>> model = tiny.tiny_model()
            >>> config = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}
            >>> with attach(model, config) as sync, sync.probe() as probe:
            ...     _ = model(**tiny.example_inputs(model, batch_size=2))
            >>> probe.forwards, len(probe.blocks)
            (1, 6)
            >>> probe.findings().write("measured")  # doctest: +SKIP
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
        """Return what is attached, as lines for a terminal."""
        if not self.family:
            return ["LayerSync is off"]
        told = [line for item in self._regularizers for line in item.describe()]
        if self._search is not None:
            return [f"family: {self.family}", "blocks and tokens are found in the first training forward"]
        return [f"family: {self.family}", *told, *(["guard: off"] if self.guard is None else [])]

    @property
    def due(self) -> bool:
        """Whether a regularizer still has, or will have, a weight, so that training forwards are held."""
        return self._capture is not None and self._capture.enabled

    def modules(self) -> nn.ModuleDict:
        """Return the trainable parts of the regularizers and of the objective, by name, for the optimiser."""
        return self._modules

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule's step, the trainable parts and whose code made them, for a checkpoint."""
        modules = {name: module.state_dict() for name, module in self._modules.items()}
        return {"version": 1, "step": self._step, "modules": modules, "distributions": self.distributions()}

    def distributions(self) -> list[Record]:
        """Return whose code takes part: core, the adapter and the plugins that are on.

        Each has its ``name``, ``version``, ``role``, ``entry`` point and ``origin``, which is where it was installed
        from.
        """
        return taking_part(self._adapter, self._plugins)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned, and say so where other versions of the code had made it.

        Raises:
            ConfigError: It has another version, or its trainable parts are not those of this attachment.
        """
        known = isinstance(state, Mapping) and state.get("version") == 1
        parts = state.get("modules") if known else None
        step = state.get("step") if known else None
        if not isinstance(parts, Mapping) or not isinstance(step, int) or step < 0:
            raise ConfigError("this isn't a state of a LayerSync attachment, or it has another version")
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
        self.compare(state)

    def compare(self, state: Mapping[str, Any]) -> None:
        """Say so in one line, on one rank, where a state was made by other versions of the code."""
        others = changed(state.get("distributions"), self.distributions())
        if others and first_rank():
            log.warning("the checkpoint was written with %s", others)

    def _consume(
        self,
        step: int | None,
        sample_weight: Tensor | None,
        forward: Forward | None,
        main: Tensor | None,
        check: Callable[[], None] | None = None,
    ) -> Tensor | None:
        capture = self._capture
        if capture is None:
            raise CaptureError("this attachment was removed from its model; attach again to go on with LayerSync")
        if torch.compiler.is_dynamo_compiling():
            # Where graph breaks are allowed the compiler runs this uncompiled. With fullgraph=True it reports the
            # message, but only of a plain exception, since it cannot trace how LayerSync's own errors are created.
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
            if not self.find(read, main):
                return None
            capture = self._capture or capture  # after discovery it is the capture of the blocks that were found
            capture.collect(read)
            if self._marking is not None and self._generated is None:
                self._marking.mark(read, main)
            terms = self._terms(active, read, weight_B, now)
            return total(terms) if terms else None
        finally:
            # Even after a failure, since otherwise a program that catches it gets another error at its next forward.
            if self._capture is not None:
                self._capture.discard(forward)
            if read is not None:
                read.release()
            if now is not None:
                self._step = now + 1
                # If the host counts steps, further micro-batches of a step have the same number.
                self.gate(self._step if step is None else now)

    def _terms(self, active: list[Enabled], forward: Forward, weight_B: Tensor | None, step: int) -> list[Tensor]:
        if self._generated is not None:
            choose_generated(forward, self._buffer, self._generated)
        require_tokens(forward)
        if weight_B is not None:
            check_batch(weight_B, len(next(iter(self._buffer.values()))))
        first = not self._begun
        self._tend_parts()
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
        if self._marking is not None:
            self._marking.refuse_all(states.sets)
        if first:
            states.tell_no_references()
        if check is not None:
            check.choose(forward, "all" if states.sets == {"all"} else "target")
        return terms

    def _tend_parts(self) -> None:
        if self._begun:
            self.parts.check()
            return
        self._begun = True
        self.parts.begin()
        for item in self._regularizers:
            item.begin(self._model)

    def gate(self, step: int) -> None:
        """Stop the capture if no regularizer is due at an optimiser step or later, and start it if one is."""
        # Past the end of every schedule nothing is captured, so a finished term costs nothing.
        if self._capture is not None:
            self._capture.enabled = any(item.active(step) for item in self._regularizers)


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
