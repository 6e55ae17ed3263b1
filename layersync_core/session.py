"""Attach LayerSync to a model: configuration → capture → buffer → regularizers → one total loss."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from layersync_core.capture.buffer import HiddenStateBuffer
from layersync_core.capture.states import HiddenStates
from layersync_core.config import LayerSyncConfig
from layersync_core.errors import CaptureError, ConfigError, LayerSyncError
from layersync_core.families.registry import get_adapter, resolve
from layersync_core.families.unwrap import unwrap
from layersync_core.inputs import check_batch, check_main_loss, sample_weights, whole_step
from layersync_core.losses import layersync
from layersync_core.losses.parts import TrainedParts
from layersync_core.losses.plugins import Plugins
from layersync_core.metrics import Meter, check_term, total
from layersync_core.protocol import API_VERSION, Adapter, Block, CaptureHandle, Objective, Regularizer
from layersync_core.spelling import PREFIX

log = logging.getLogger(__name__)

_attached: WeakSet[nn.Module] = WeakSet()


@cache
def plugins() -> Plugins:
    """Return the plugins of this process, LayerSync first, loaded on first use."""
    return Plugins(builtins=[layersync])


def attach(
    model: nn.Module,
    config: LayerSyncConfig | Mapping[str, Any],
    *,
    family: str | None = None,
    adapter: Adapter | None = None,
    objective: Objective | None = None,
) -> Attachment:
    """Attach LayerSync, and every other enabled regularizer, to a model.

    Args:
        model: The model that is trained, also inside DDP, FSDP, compile or PEFT wrappers.
        config: Settings; a mapping is read by ``LayerSyncConfig.from_mapping``.
        family: Family to use instead of the one that the model's class tells.
        adapter: Adapter for a model of one's own, instead of an installed one.
        objective: What the caller's loop computes its main loss with, as ``plugins().objective`` returned it.

    Raises:
        ConfigError: The settings are wrong or do not fit the model, or enable an objective that the caller does not
            run, or the model has an attachment already.
        UnsupportedFamilyError: The model's family is refused.
        AdapterNotInstalledError: The family is known but its adapter is missing or broken.
        UnknownFamilyError: No installed adapter describes the model.
    """
    if not isinstance(config, (LayerSyncConfig, Mapping)):
        raise ConfigError(f"attach() takes a LayerSyncConfig or a mapping; got a {type(config).__name__}")
    if not isinstance(config, LayerSyncConfig):
        config = LayerSyncConfig.from_mapping(config)
    regularizers = plugins().regularizers(config)
    if objective is None and (enabled := plugins().objective(config)) is not None:
        raise ConfigError(
            f"objective {enabled.name} replaces the main loss, which attach() and layersync run leave to the program; "
            "only layersync train can run it: use that, or switch it off"
        )
    root = unwrap(model)
    if not isinstance(root, nn.Module):
        raise ConfigError(f"attach() takes a torch module; got a {type(root).__name__}")
    if not regularizers:
        if f"{PREFIX}enabled" not in config.given:
            log.warning(
                "no layersync_* setting was given to attach(), so LayerSync is off; layersync_enabled switches it"
            )
        return Attachment(root, None, [], [])
    if root in _attached:
        raise ConfigError(
            f"this {type(root).__name__} has an attachment already; call remove() on it before attaching again "
            "(a program that attaches by itself needs no layersync run)"
        )
    if adapter is not None and not isinstance(adapter, Adapter):
        raise ConfigError(f"adapter= takes an adapter such as BlockStackAdapter; got a {type(adapter).__name__}")
    if adapter is None:
        adapter = get_adapter(family) if family else resolve(root)
    if adapter.api_version != API_VERSION:
        raise ConfigError(
            f"adapter {adapter.family} is written for adapter API {adapter.api_version!r}, this layersync-core for "
            f"{API_VERSION}"
        )
    if not adapter.supports_hidden_states(root):
        raise ConfigError(
            f"adapter {adapter.family} does not fit this {type(root).__name__}: it describes "
            f"{', '.join(adapter.model_classes)} with their usual blocks; for a model of your own pass adapter=…"
        )
    return Attachment(root, adapter, adapter.list_blocks(root), regularizers)


class Attachment:
    """What ``attach`` returns: add the terms to a loss, read the metrics, and take everything off again.

    Attributes:
        blocks: Every block of the model in execution order.
        family: Id of the model's family; None when no regularizer is enabled.
    """

    def __init__(
        self, model: nn.Module, adapter: Adapter | None, blocks: list[Block], regularizers: list[Regularizer]
    ) -> None:
        self.blocks = blocks
        self.family = adapter.family if adapter else None
        self._model = model
        self._regularizers = regularizers
        self._meter = Meter()
        self._step = 0
        self._begun = False
        self._judged: set[int] = set()
        self._modules = nn.ModuleDict()
        self._parts: TrainedParts | None = None
        self._capture: CaptureHandle | None = None
        if adapter is None:
            return
        layers = {layer for item in regularizers for layer in _layers_of(item, blocks)}
        for item in regularizers:
            part = getattr(item, "module", None)
            if part is not None:
                self._modules[item.name] = part.to(_device_of(model))
        self._buffer = HiddenStateBuffer(layers)
        self._capture = adapter.capture(model, layers, self._buffer)
        self._parts = TrainedParts(model, dict(self._modules.items()))
        _attached.add(model)
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
        term = self._consume(step, sample_weight, lambda: check_main_loss(loss))
        return loss if term is None else loss + term.to(loss.device)

    def loss(self, *, step: int | None = None, sample_weight: Tensor | None = None) -> Tensor:
        """Return the sum of the terms alone, an fp32 scalar; otherwise like ``apply``."""
        term = self._consume(step, sample_weight) if self._regularizers else None
        return torch.zeros((), device=_device_of(self._model)) if term is None else term

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

    def remove(self) -> None:
        """Take every hook off the model; ``apply`` and ``loss`` raise from then on."""
        if self._capture is not None:
            self._capture.remove()
            self._capture = None
            _attached.discard(self._model)
        if self._parts is not None:
            self._parts.remove()

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    @property
    def pairs(self) -> list[Any]:
        """The resolved pairs: ``student``, ``teacher`` and ``weight`` of each."""
        return [pair for item in self._regularizers for pair in getattr(item, "pairs", ())]

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
        told = [item.describe() for item in self._regularizers if hasattr(item, "describe")]
        return [f"family: {self.family}", *(line for lines in told for line in lines)]

    @property
    def capture(self) -> CaptureHandle | None:
        """The running capture; None when nothing is enabled or after ``remove``."""
        return self._capture

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
        self, step: int | None, sample_weight: Tensor | None, check: Callable[[], None] = lambda: None
    ) -> Tensor | None:
        capture = self._capture
        if capture is None:
            raise CaptureError("this attachment was removed from its model; attach again to go on with LayerSync")
        try:
            check()
            now = self._step if step is None else whole_step(step)
            weight_B = sample_weights(sample_weight)
        except ConfigError:
            capture.discard()  # a program that catches this would be refused its next forward for another reason
            raise
        active = [item for item in self._regularizers if _is_active(item, now)]
        try:
            if not active:
                return None
            if not torch.is_grad_enabled():
                raise CaptureError("the loss was asked for under torch.no_grad(), where it would have no gradient")
            states = HiddenStates(
                self._model, capture.collect(), self._buffer, self.blocks, self._meter, weight_B, self._judged
            )
            check_batch(weight_B, len(next(iter(self._buffer.values()))))
            if not self._begun:
                self._begin()
            elif self._parts is not None:
                self._parts.check()
            terms = [term for item in active if (term := self._term(item, states, now)) is not None]
            return total(terms) if terms else None
        finally:
            capture.discard()
            self._step = now + 1
            # Further micro-batches of a step that the host counts come with the same number.
            self.gate(self._step if step is None else now)

    def _term(self, item: Regularizer, states: HiddenStates, step: int) -> Tensor | None:
        states.reader = item.name
        term = item.compute(states, step)
        if term is None:
            return None
        check_term(term, f"regularizer {item.name}")
        for name, value in term.metrics.items():
            self._meter.claim(name, item.name)
            self._meter.add(name, value)
        return term.loss

    def _begin(self) -> None:
        self._begun = True
        if self._parts is not None:
            self._parts.begin()
        for item in self._regularizers:
            begin = getattr(item, "begin", None)
            if begin is not None:
                begin(self._model)

    def gate(self, step: int) -> None:
        """Stop the capture if no regularizer is due at an optimiser step or later, and start it if one is."""
        # Past the end of every schedule nothing is captured, so that a term that is over costs nothing.
        if self._capture is not None:
            self._capture.enabled = any(_is_active(item, step) for item in self._regularizers)


def _layers_of(item: Regularizer, blocks: list[Block]) -> set[int]:
    layers = item.layers(blocks)
    unknown = sorted(set(layers) - set(range(len(blocks))))
    if unknown:
        raise LayerSyncError(
            f"regularizer {item.name} asks for layer {', '.join(map(str, unknown))}; "
            f"the layers of this model are 0 to {len(blocks) - 1}"
        )
    return layers


def _is_active(item: Regularizer, step: int) -> bool:
    active = getattr(item, "active", None)
    return True if active is None else bool(active(step))


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
