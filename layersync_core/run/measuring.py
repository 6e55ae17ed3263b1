"""``--layersync_suggest N``: measure the forwards of N steps of a program, without the term, and stop it."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core import _compat
from layersync_core.attachment import Attachment
from layersync_core.errors import CaptureError, LayerSyncError
from layersync_core.families.asking import blocks_of
from layersync_core.run import ranks
from layersync_core.run.candidates import Candidate
from layersync_core.run.holding import make_room
from layersync_core.run.settings import Settings
from layersync_core.run.status import Status, say
from layersync_core.run.steps import LOSSES_WITHOUT_OPTIMISER
from layersync_core.run.training import Training
from layersync_core.session import fitting
from layersync_core.suggest.files import make_folder
from layersync_core.suggest.probe import Probe

_IDLE_STEPS = 10  # steps without a measured forward, before the first measured one


class Measuring(Training):
    """What the library patches call where a program is measured instead of trained with the term.

    Args:
        settings: Settings of the run.
        steps: Number of steps to measure.
    """

    def __init__(self, settings: Settings, steps: int) -> None:
        super().__init__(settings)
        self._asked = steps
        # Resolved now, since the program may change its working directory before anything is written.
        self._folder = Path(settings.launch.layersync_suggest_dir).absolute()
        self._probes: dict[Candidate, Probe] = {}
        self._seen = 0  # forwards measured up to the last step or loss
        self._losses = 0
        self._concluded = False

    def _take(self, model: nn.Module, family: str | None) -> Attachment:
        adapter = fitting(model, family)
        return Attachment(model, adapter, blocks_of(adapter, model), [], make_room, guarded=False)

    def _attached(self, candidate: Candidate) -> None:
        self._probes[candidate] = candidate.attached_to.probe()
        if ranks.rank() == 0:
            make_folder(self._folder)  # fails before time is spent on measuring
            blocks = f"family {candidate.attached_to.family}, {len(candidate.attached_to.blocks)} blocks"
            steps = f"{self._asked} step{'s' * (self._asked != 1)}"
            say(f"measuring {candidate} ({blocks}) for {steps} without the term, then the program is stopped")

    def add_terms(
        self,
        loss: Any,
        divides: int | None = None,
        factor: Tensor | None = None,
        past: int = 1,
        library: str = "",
    ) -> Any:
        """Return the loss unchanged; count it where steps cannot be counted."""
        if not self.taken and self._is_new():
            self._losses += 1
            every = self.settings.launch.layersync_accumulation_steps
            enough = self._asked * every if every else max(self._asked, LOSSES_WITHOUT_OPTIMISER)
            self.journal.status.measured = self._losses // every if every else 1
            if self._losses >= enough:
                self._stop()
        return loss

    def before_step(self, optimiser: torch.optim.Optimizer) -> None:
        """Count a step whose forwards were measured, and stop the program at the last one."""
        status = self.journal.status
        if not self.taken:
            status.measured, self._seen = 0, 0
        self.taken += 1
        if self._concluded:
            self.journal.say_once(
                "caught", "the program caught the end of the measurement and goes on, without the term"
            )
            self._stop()
        if self._is_new():
            status.measured += 1
            self.journal.write()
            if status.measured == self._asked:
                self._stop()
        elif not self._seen and self.taken == _IDLE_STEPS:
            self.journal.fail(CaptureError(f"no forward was measured in {_IDLE_STEPS} steps: {self._why()}"))

    def resumed(self, states: dict[str, Any] | None) -> None:
        """Ignore a checkpoint: nothing that is measured depends on it."""

    def _is_new(self) -> bool:
        """Return whether forwards were measured since the last call."""
        before, self._seen = self._seen, sum(probe.forwards for probe in self._probes.values())
        return self._seen > before

    def _stop(self) -> None:
        try:
            self._conclude()
        except LayerSyncError as error:
            self.journal.fail(error)
        raise SystemExit(0)

    def _conclude(self) -> None:
        """Print and write the findings, once, on the first rank."""
        if self._concluded:
            return
        self._concluded = True
        measured = {candidate: probe for candidate, probe in self._probes.items() if probe.forwards}
        if ranks.rank():
            return
        for candidate, probe in measured.items():
            folder = self._folder if len(measured) == 1 else self._folder / f"{candidate.name}-{candidate.number}"
            found = probe.findings()
            if len(self._probes) > 1:
                say(f"{len(self._probes)} models were measured; findings for {candidate}")
            for line in (*found.lines(), *found.write(folder)):
                say(line)

    def _fill(self, status: Status, wait: bool) -> None:
        """Conclude at the end of a program that took fewer steps; report why if nothing was measured."""
        if not wait or self._concluded:
            return
        with suppress(OSError):  # created for a program in which nothing was measured
            self._folder.rmdir()
        if status.error:
            return
        try:
            if any(probe.forwards for probe in self._probes.values()):
                say(f"the program ended after {status.measured} of {self._asked} steps")
                status.measured = max(status.measured, 1)
                self._conclude()
            elif self.taken:
                raise CaptureError(f"no forward was measured: {self._why()}")
        except LayerSyncError as error:
            self.journal.tell(error)
        if getattr(sys, "last_type", None) is KeyboardInterrupt:
            _compat.end_by_interrupt()

    def _why(self) -> str:
        whys = [f"{candidate}: {probe.why_none}" for candidate, probe in self._probes.items()]
        return "; ".join(whys) or self.candidates.why(self.journal.seen)[0]
