"""One process of a training under ``layersync run``: which models, which losses, which steps."""

from __future__ import annotations

import atexit
import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from layersync_core.capture import Pass
from layersync_core.errors import CaptureError, ConfigError, LayerSyncError, LayerSyncWarning
from layersync_core.graph import notes, reached, tensors_in
from layersync_core.launch import ranks
from layersync_core.launch.accumulation import Accumulation
from layersync_core.launch.candidates import Candidate, Candidates
from layersync_core.launch.metrics_log import MetricsLog, follow
from layersync_core.launch.replacing import show_as_without_us
from layersync_core.launch.settings import Settings
from layersync_core.launch.status import Status, say, summary

# Between a loss and what the model returned stand some dozens of nodes, with a decoder in between some thousands.
_NODES = 20_000
_IDLE_STEPS = 10
_LOSSES_WITHOUT_OPTIMISER = 100
_TERM = "layersync term"


class Training:
    """What happens between the forwards and the optimiser's steps of a program.

    Args:
        settings: Of the run.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.candidates = Candidates(settings, self._attached)
        self.step = settings.launch.layersync_start_step or 0
        self.log = MetricsLog(settings.launch.layersync_status_dir)
        self.status = Status()
        self._accumulation = Accumulation(settings.launch.layersync_accumulation_steps)
        self._targets: list[Candidate] = []
        self._parts: dict[str, Any] = {}
        self._resumed = False
        self._terms = 0  # since the last optimiser step
        self._strangers = 0  # losses without a term, before the first term
        self._idle = 0  # optimiser steps without a term, in a row
        self._optimisers = 0
        self._checked = False
        self._stepped_inside = False
        self._said: set[str] = set()
        self._written = 0.0
        self._seen: dict[str, None] = {}
        self.write()
        atexit.register(self._finish)

    # What the patches call.

    def build(self, module: nn.Module) -> None:
        """Notice a module that is being built."""
        self.candidates.notice(module)

    def prepare(self, modules: Sequence[Any] = ()) -> None:
        """Attach to the models that are there by now: one of them is wrapped or compiled."""
        self._seen.update({type(item).__name__: None for item in modules if isinstance(item, nn.Module)})
        with self._failures(), _one_line_warnings():
            self.candidates.scan()

    def optimise(self, optimiser: torch.optim.Optimizer) -> None:
        """Attach before training starts, and give the optimiser the trainable parts of the regularizers."""
        self._optimisers += 1
        self.prepare()
        with self._failures():
            self.candidates.require_one()
        for candidate in self.candidates.attached:
            _place(candidate, optimiser)

    def add_terms(self, loss: Any, divides: int | None = None) -> Any:
        """Return a loss plus the terms of the forwards that it depends on.

        Args:
            loss: What the program wants gradients of.
            divides: By how much the library that runs backward divides it afterwards; None where none does.
        """
        self._stepped_inside = False
        if not isinstance(loss, Tensor) or loss.grad_fn is None:
            self._stranger()
            return loss
        # A program may call backward under no_grad: that concerns its forwards, not the sum that is differentiated.
        with self._failures(), torch.enable_grad():
            again = notes(loss.grad_fn).get(_TERM)
            if again is not None:  # a second backward through one loss counts twice, so does its term
                return loss + again.to(loss.device)
            found = self._forwards_of(loss)
            if not found:
                self._stranger()
                return loss
            if loss.numel() != 1:
                raise CaptureError(
                    f"backward was called on a tensor of shape {tuple(loss.shape)}, which is no loss that a term could "
                    "be added to; call it on a scalar"
                )
            term = self._term(loss, found, divides)
            # The term knows nothing of the loss, so this makes no circle that would keep the graph alive.
            notes(loss.grad_fn)[_TERM] = term
            return loss + term.to(loss.device)

    def before_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Check, before an optimiser's first step, that LayerSync does what it should; count the steps."""
        inside = torch._C._current_graph_task_id() != -1
        if inside and self._stepped_inside:
            return  # one of many steps of a backward that updates each parameter as its gradient arrives
        self._stepped_inside = inside
        with self._failures():
            if not self._terms:
                self._idle_step(inside)
                return
            if not self._checked:
                self._check()
        self._idle, self._terms = 0, 0
        if self.status.steps or self._settings.launch.layersync_accumulation_steps is None:
            self.step += 1
        self.status.steps += 1
        for candidate in self.candidates.attached:
            _gate(candidate, self.step)
        self.log.step()
        follow(self.log)
        self._write_now_and_then()

    def resumed(self, step: int | None, parts: dict[str, Any]) -> None:
        """Go on where a checkpoint was written; None where it tells nothing."""
        with self._failures():
            if step is not None:
                self.step, self._parts, self._resumed = step, parts, True
                for candidate in self.candidates.attached:
                    self._attached(candidate)
            elif self._settings.launch.layersync_start_step is None:
                if self._settings.config.has_schedule or any(self._modules()):
                    raise ConfigError(
                        "the checkpoint has no layersync_state.safetensors, so where the schedule stood is not known; "
                        "give --layersync_start_step N"
                    )
                say("the checkpoint has no layersync_state.safetensors; nothing of LayerSync's depends on the step")

    def state(self) -> tuple[int, dict[str, Tensor]]:
        """Return the step, and the weights of the trainable parts by name."""
        parts = {
            f"{candidate}/{name}": tensor
            for candidate in self._targets
            for name, tensor in _attachment(candidate).modules().state_dict().items()
        }
        return self.step, parts

    def fail(self, error: LayerSyncError) -> NoReturn:
        """Stop the program: tell the parent why, and raise."""
        self.status.error = self.status.error or str(error)
        self.write()
        raise error

    # Forwards and losses.

    def _forwards_of(self, loss: Tensor) -> dict[Candidate, list[Pass]]:
        passes = {held: item for item in self.candidates.attached for held in item.capture.passes}
        keys: dict[Any, list[Pass]] = {}
        for held in passes:
            end = held.end() if held.end is not None else None
            if end is not None:
                keys.setdefault(end, []).append(held)
            elif held.end is None:
                for state in tensors_in(tuple(held.outputs.values())):
                    if state.grad_fn is not None:
                        keys.setdefault(state.grad_fn, []).append(held)
        if not keys:
            return {}
        hit = {held for key in reached(loss, keys.keys(), _NODES) for held in keys[key]}
        found: dict[Candidate, list[Pass]] = {}
        for held, candidate in passes.items():
            if held in hit:
                found.setdefault(candidate, []).append(held)
        return found

    def _term(self, loss: Tensor, found: dict[Candidate, list[Pass]], divides: int | None) -> Tensor:
        self._require_one_family(list(found))
        total: Tensor | None = None
        errors: list[CaptureError] = []
        for candidate, passes in found.items():
            first, *others = passes
            if others:
                self._say_once(
                    "several",
                    f"{len(passes)} training forwards of {candidate} are part of one loss; the first of them gets the "
                    "term",
                )
            candidate.capture.choose(first, others)
            try:
                with nullcontext() if self._checked else _one_line_warnings():
                    term = _attachment(candidate).loss(step=self.step)
            except CaptureError as error:
                # A frozen model between the trained one and the loss, such as a discriminator, is no target.
                errors.append(error)
                continue
            if candidate not in self._targets:
                self._targets.append(candidate)
            total = term if total is None else total + term.to(total.device)
        if total is None:
            raise errors[0]
        share = self._accumulation.share(loss, divides)
        self._record(list(found))
        return total if share == 1 else total * share

    def _require_one_family(self, candidates: list[Candidate]) -> None:
        families = {_attachment(item).family for item in candidates}
        if len(families) > 1 and not self._settings.launch.layersync_target:
            names = ", ".join(f"{item} ({_attachment(item).family})" for item in candidates)
            raise ConfigError(
                f"the loss depends on models of several families: {names}; name the one to train with LayerSync with "
                "--layersync_target"
            )

    def _record(self, candidates: list[Candidate]) -> None:
        self._terms += 1
        self.status.terms += 1
        self._count_without_optimiser()
        for candidate in candidates:
            self.log.add(_attachment(candidate).metrics())
        for candidate in candidates:
            if candidate in self._targets:
                line = _describe(candidate)
                if line not in self.status.targets:
                    self.status.targets.append(line)
                    self.status.rank = ranks.rank()
                    if self.status.rank == 0:
                        say(f"{line}, {self._accumulation.describe()}")
        self._write_now_and_then()

    def _stranger(self) -> None:
        # Programs call backward on other losses as well; but one that never steps an optimiser must be told here.
        if self.status.terms or not (self._optimisers or self.candidates.attached) or not self._is_due():
            return
        self._strangers += 1
        if self._strangers > 1:
            with self._failures():
                raise CaptureError(f"two losses were trained without LayerSync's term: {self._why()}")

    # Steps.

    def _check(self) -> None:
        self._checked = True
        said = self._accumulation.verify(self._terms)
        if said and ranks.rank() == 0:
            say(said)
        parts = self._trained_parts()
        placed = {id(parameter) for parameter in _placed}
        lost = [p for part in parts for p in part.parameters() if p.requires_grad and id(p) not in placed]
        if lost:
            raise CaptureError(
                "a regularizer brings trainable parts, but they are in no optimiser: this program made its optimiser "
                "before its model, or it is of a kind that is not torch's"
            )
        for item in self._targets if self._resumed else ():
            names = _attachment(item).modules()
            if names and not any(key.startswith(f"{item}/") for key in self._parts):
                raise ConfigError(
                    f"the checkpoint has no trained part of {', '.join(names)} for {item}: it was written without it; "
                    "start anew, or switch it off"
                )
        ranks.compare("; ".join(sorted(f"{line}, step {self.step}" for line in self.status.targets)))

    def _count_without_optimiser(self) -> None:
        # Trainers that update each parameter in backward, or by hand, never call an optimiser's step.
        if self.status.steps:
            return
        losses = self._settings.launch.layersync_accumulation_steps
        if losses is not None and self.status.terms % losses == 0:
            self.step += 1
        elif losses is None and self.status.terms >= _LOSSES_WITHOUT_OPTIMISER and self._settings.config.has_schedule:
            raise CaptureError(
                f"no step of a torch optimiser was seen in {self.status.terms} losses, so the schedule would stand "
                "still; give --layersync_accumulation_steps N (1 without accumulation), and steps are counted by losses"
            )

    def _idle_step(self, inside: bool) -> None:
        if inside and self.status.terms:
            return
        if not self.status.terms:
            if not self._is_due():
                self.status.over = True
                return
            raise CaptureError(f"no loss got LayerSync's term before the first optimiser step: {self._why()}")
        self._idle += 1
        if self._idle == _IDLE_STEPS and self._is_due():
            self._say_once("idle", f"warning: {_IDLE_STEPS} optimiser steps in a row had no term: {self._why()}")

    def _is_due(self) -> bool:
        attached = self.candidates.attached
        return not attached or any(item.capture.enabled for item in attached)

    def _why(self) -> str:
        why = self.candidates.explain()
        self.status.seen = list(dict.fromkeys([*self._seen, *_largest_models()]))
        if why:
            return (
                f"{why}. Gradients by torch.autograd.grad or torch.func do not pass through a loss that a term could "
                "be added to"
            )
        return (
            f"no model of a known family was built; models of this program: {', '.join(self.status.seen) or 'none'}; "
            "layersync list-supported shows the families"
        )

    # Trainable parts.

    def _attached(self, candidate: Candidate) -> None:
        self._restore(candidate)
        _gate(candidate, self.step)

    def _restore(self, candidate: Candidate) -> None:
        prefix = f"{candidate}/"
        own = {name.removeprefix(prefix): value for name, value in self._parts.items() if name.startswith(prefix)}
        modules = _attachment(candidate).modules()
        if own and modules:
            try:
                modules.load_state_dict(own)
            except RuntimeError as error:
                raise ConfigError(
                    f"the checkpoint's trainable parts do not fit: {' '.join(str(error).split())}"
                ) from None

    def _modules(self) -> list[nn.Module]:
        return [part for item in self.candidates.attached for part in _attachment(item).modules().values()]

    def _trained_parts(self) -> list[nn.Module]:
        return [part for item in self._targets for part in _attachment(item).modules().values()]

    # What is said.

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except LayerSyncError as error:
            self.fail(error)

    def _say_once(self, key: str, message: str) -> None:
        if key not in self._said:
            self._said.add(key)
            say(message)

    def _write_now_and_then(self) -> None:
        # Early, since a program may be killed; then rarely, since a figure on a device must be waited for.
        if self.status.terms <= 2 or time.monotonic() - self._written > 5:
            self.write()

    def write(self) -> None:
        """Write the status file."""
        self._written = time.monotonic()
        self.status.tracker = self.log.where
        self.status.first, self.status.last = _finite(self.log.first.peek()), _finite(self.log.last.peek())
        self.status.write(self.log.folder)

    def _finish(self) -> None:
        with suppress(RuntimeError):  # a device that failed is the program's own error
            self.log.close()
            self.log.first.wait()
            self.log.last.wait()
        if not self.status.terms and not self.status.seen:
            self.status.seen = list(dict.fromkeys([*self._seen, *(str(item) for item in self.candidates)]))
        self.write()
        if self.log.folder is None and self.status.terms and ranks.rank() == 0:
            say(summary([self.status]))  # no parent will


_placed: list[nn.Parameter] = []


def _place(candidate: Candidate, optimiser: torch.optim.Optimizer) -> None:
    """Put the trainable parts into the optimiser of their model, in the group of its parameters."""
    parts = [p for part in _attachment(candidate).modules().values() for p in part.parameters() if p.requires_grad]
    fresh = [p for p in parts if not any(p is placed for placed in _placed)]
    if not fresh:
        return
    model = candidate.model()
    assert model is not None
    own = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    groups = [group for group in optimiser.param_groups if own & {id(p) for p in group["params"]}]
    # Trainers keep LoRA weights outside of the model: then its optimiser is the one that is made after it.
    if not own:
        groups = optimiser.param_groups
    if groups:
        groups[0]["params"].extend(fresh)
        _placed.extend(fresh)


def _attachment(candidate: Candidate) -> Any:
    assert candidate.attachment is not None
    return candidate.attachment


def _gate(candidate: Candidate, step: int) -> None:
    _attachment(candidate).gate(step)


def _describe(candidate: Candidate) -> str:
    attachment = _attachment(candidate)
    _, *told = attachment.describe()  # the family comes first
    lines = ", ".join(line.replace(": ", " ", 1) for line in told)
    return ": ".join((f"{candidate} (family {attachment.family})", *([lines] if lines else [])))


def _largest_models(count: int = 5) -> list[str]:
    """Return the class names of the largest models of the program, found as the garbage collector finds them."""
    import gc

    # By type: asking an object for its class may run code of its own.
    modules = [item for item in gc.get_objects() if issubclass(type(item), nn.Module)]
    inner = {id(child) for module in modules for child in module._modules.values() if child is not None}
    roots = [module for module in modules if id(module) not in inner]
    sizes = sorted(((sum(p.numel() for p in root.parameters()), type(root).__name__) for root in roots), reverse=True)
    return list(dict.fromkeys(name for size, name in sizes if size))[:count]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", LayerSyncWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, LayerSyncWarning):
            if ranks.rank() == 0:
                say(f"warning: {warning.message}")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def exception_hook() -> None:
    """Show an error of ours that ends the program as one line; the traceback would be that of our own code."""
    others = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, LayerSyncError):
            say(f"error: {error}")
        else:
            show_as_without_us(error)
            others(kind, error, error.__traceback__)

    sys.excepthook = show
