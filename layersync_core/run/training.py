"""One process of a training under ``layersync run``: which models, which losses, which steps."""

from __future__ import annotations

import atexit
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NoReturn
from weakref import WeakSet

import torch
from torch import Tensor, nn

from layersync_core.capture.graph import notes, reached, tensors_in
from layersync_core.capture.hooks import Pass
from layersync_core.errors import CaptureError, ConfigError, LayerSyncError
from layersync_core.metrics import total
from layersync_core.run import ranks
from layersync_core.run.accumulation import Accumulation
from layersync_core.run.candidates import Candidate, Candidates, largest_models
from layersync_core.run.metrics_log import MetricsLog, follow
from layersync_core.run.parts import Parts
from layersync_core.run.settings import Settings
from layersync_core.run.showing import one_line_warnings, say_error
from layersync_core.run.status import Status, say, summary

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
        self._parts = Parts()
        self._terms = 0  # since the last optimiser step
        self._strangers = 0  # losses without a term, before the first term
        self._idle = 0  # optimiser steps without a term, in a row
        self._optimisers = 0
        self._ours: WeakSet[torch.optim.Optimizer] = WeakSet()
        self._others: WeakSet[torch.optim.Optimizer] = WeakSet()
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
        with self._failures(), one_line_warnings():
            self.candidates.scan()

    def optimise(self, optimiser: torch.optim.Optimizer) -> None:
        """Attach before training starts, and give the optimiser the trainable parts of the regularizers."""
        self._optimisers += 1
        self.prepare()
        with self._failures():
            self.candidates.require_one()
        if self.candidates.trained_by(optimiser):
            self._ours.add(optimiser)
        for candidate in self.candidates.attached:
            self._parts.place(candidate, optimiser)

    def add_terms(self, loss: Any, divides: int | None = None, factor: Tensor | None = None) -> Any:
        """Return a loss plus the terms of the forwards that it depends on.

        Args:
            loss: What the program wants gradients of.
            divides: By how much the library that runs backward divides it afterwards; None where none does.
            factor: Scalar that the gradient begins with, a factor of the loss by another name: the sum is multiplied.
        """
        self._stepped_inside = False
        if not isinstance(loss, Tensor) or loss.grad_fn is None:
            self._stranger()
            return loss
        # A program may call backward under no_grad: that concerns its forwards, not the sum that is differentiated.
        with self._failures(), torch.enable_grad():
            term = notes(loss.grad_fn).get(_TERM)  # a second backward through one loss counts twice, so does its term
            found = {} if term is not None else self._forwards_of(loss)
            if term is None and not found:
                self._stranger()
                return loss
            if term is None:
                if loss.numel() != 1:
                    raise CaptureError(
                        f"backward was called on a tensor of shape {tuple(loss.shape)}, which is no loss that a term "
                        "could be added to; call it on a scalar"
                    )
                # The term knows nothing of the loss, so this makes no circle that would keep the graph alive.
                term = notes(loss.grad_fn)[_TERM] = self._term(found)
            scaled = loss if factor is None else loss * factor.detach()
            share = self._accumulation.share(scaled, divides)
            if found:
                self._record(list(found))
            return scaled + (term if share == 1 else term * share).to(loss.device)

    def before_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Check, before an optimiser's first step, that LayerSync does what it should; count the steps."""
        inside = torch._C._current_graph_task_id() != -1
        if inside and self._stepped_inside:
            return  # one of many steps of a backward that updates each parameter as its gradient arrives
        self._stepped_inside = inside
        with self._failures():
            if self.status.error:  # the program caught it and goes on
                raise CaptureError(self.status.error)
            if self._is_of_another_model(optimiser):
                return
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
            candidate.attached_to.gate(self.step)
        self.log.step()
        follow(self.log)
        self._write_now_and_then()

    def resumed(self, step: int | None, saved: dict[str, Any]) -> None:
        """Go on where a checkpoint was written; None where it tells nothing."""
        with self._failures():
            if step is not None:
                self.step = step
                self._parts.resume(saved)
                for candidate in self.candidates.attached:
                    self._attached(candidate)
            elif self._settings.launch.layersync_start_step is None:
                if self._settings.config.has_schedule or any(
                    item.attached_to.modules() for item in self.candidates.attached
                ):
                    raise ConfigError(
                        "the checkpoint has no layersync_state.safetensors, so where the schedule stood is not known; "
                        "give --layersync_start_step N"
                    )
                say("the checkpoint has no layersync_state.safetensors; nothing of LayerSync's depends on the step")

    def state(self) -> tuple[int, dict[str, Tensor]]:
        """Return the step, and the weights of the trainable parts by name."""
        return self.step, self._parts.state(self._targets)

    def fail(self, error: LayerSyncError) -> NoReturn:
        """Stop the program: tell the parent why, and raise."""
        if not self.status.error:
            self.status.error = str(error)
            self.write()
            say_error(error)  # now: the program may catch it
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

    def _term(self, found: dict[Candidate, list[Pass]]) -> Tensor:
        self._require_one_family(list(found))
        terms: list[Tensor] = []
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
                with nullcontext() if self._checked else one_line_warnings():
                    terms.append(candidate.attached_to.loss(step=self.step))
            except CaptureError as error:
                # A frozen model between the trained one and the loss, such as a discriminator, is no target.
                errors.append(error)
                continue
            if candidate not in self._targets:
                self._targets.append(candidate)
        if not terms:
            raise errors[0]
        return total(terms)

    def _require_one_family(self, candidates: list[Candidate]) -> None:
        families = {item.attached_to.family for item in candidates}
        if len(families) > 1 and not self._settings.launch.layersync_target:
            names = ", ".join(f"{item} ({item.attached_to.family})" for item in candidates)
            raise ConfigError(
                f"the loss depends on models of several families: {names}; name the one to train with LayerSync with "
                "--layersync_target"
            )

    def _record(self, candidates: list[Candidate]) -> None:
        self._terms += 1
        self.status.terms += 1
        self._count_without_optimiser()
        for candidate in candidates:
            self.log.add(candidate.attached_to.metrics())
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
        self._parts.check(self._targets)
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

    def _is_of_another_model(self, optimiser: torch.optim.Optimizer) -> bool:
        """Return whether an optimiser is that of, say, a discriminator."""
        # Judged by what it was made with, since some libraries put other tensors into it later. Where none was made
        # with the model's own parameters, LoRA weights stand outside of it, and any may have them.
        if optimiser in self._ours or not self._ours:
            return False
        if optimiser not in self._others:
            (self._ours if self.candidates.trained_by(optimiser) else self._others).add(optimiser)
        return optimiser in self._others

    def _idle_step(self, inside: bool) -> None:
        if inside and self.status.terms:
            return
        if not self.status.terms:
            if not self._is_due():
                self.status.over = True
                return
            raise CaptureError(f"no loss got LayerSync's term before the first optimiser step: {self._why()}")
        if not self._is_due():
            return
        self.status.idle += 1
        self._idle += 1
        if self._idle == _IDLE_STEPS:
            self._say_once("idle", f"warning: {_IDLE_STEPS} optimiser steps in a row had no term: {self._why()}")

    def _is_due(self) -> bool:
        attached = self.candidates.attached
        return not attached or any(item.capture.enabled for item in attached)

    def _why(self) -> str:
        why = self.candidates.explain()
        self.status.seen = list(dict.fromkeys([*self._seen, *largest_models()]))
        if why and not self.candidates.attached:
            return why
        if why:
            return (
                f"{why}. Gradients by torch.autograd.grad or torch.func do not pass through a loss that a term could "
                "be added to"
            )
        return (
            f"no model of a known family was built; models of this program: {', '.join(self.status.seen) or 'none'}; "
            "layersync list-supported shows the families"
        )

    def _attached(self, candidate: Candidate) -> None:
        self._parts.restore(candidate)
        candidate.attached_to.gate(self.step)

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
        if self.log.folder is None and self.status.terms and not self.status.error and ranks.rank() == 0:
            say(summary([self.status]))  # no parent will


def _describe(candidate: Candidate) -> str:
    attachment = candidate.attached_to
    _, *told = attachment.describe()  # the family comes first
    lines = ", ".join(line.replace(": ", " ", 1) for line in told)
    return ": ".join((f"{candidate} (family {attachment.family})", *([lines] if lines else [])))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
