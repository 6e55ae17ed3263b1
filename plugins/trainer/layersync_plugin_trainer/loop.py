"""The training loop; ``Trainer.step`` shows what your own loop needs for LayerSync."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from layersync_core import LayerSyncError, Objective, Term, check_term, completed
from layersync_plugin_trainer.feeding import Feed
from layersync_plugin_trainer.objective import Batch, Fed
from layersync_plugin_trainer.stopping import Stop

if TYPE_CHECKING:
    from accelerate import Accelerator

    from layersync_core import Attachment


@dataclass
class Trainer:
    """One model in training.

    Attributes:
        accelerator: accelerate's; it has prepared the model, the optimiser and the schedule.
        model: The prepared model.
        sync: The attachment; inert in a vanilla arm.
        feed: Calls the model.
        optimizer: The prepared optimiser.
        scheduler: The prepared learning-rate schedule.
        parameters: The trained parameters, for clipping.
        max_grad_norm: Gradients are clipped to this norm.
        objective: Computes the main loss.
        global_step: Optimiser steps done.
        history: The logged metrics, each entry with its ``step``.
    """

    accelerator: Accelerator
    model: nn.Module
    sync: Attachment
    feed: Feed
    optimizer: Any
    scheduler: Any
    parameters: list[nn.Parameter]
    max_grad_norm: float
    objective: Objective
    global_step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    _seen: dict[str, list[Tensor]] = field(default_factory=dict)

    def step(self, batches: Iterator[Batch]) -> None:
        """Do one optimiser step: a forward and a backward for each batch, then the update.

        Nothing here waits for the device; the metrics stay on it until ``read_metrics``.

        Raises:
            LayerSyncError: A plugin's objective returned no main loss, or did not say which forward is the main pass.
        """
        for batch in batches:
            batch = batch.to(self.accelerator.device)
            with self.accelerator.accumulate(self.model):
                main = self._main(batch)
                self.accelerator.backward(self.sync.apply(main.loss, step=self.global_step))
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.parameters, self.max_grad_norm)
                self.optimizer.step()
                if self.accelerator.sync_gradients:
                    self.scheduler.step()
                self.optimizer.zero_grad()
            for name, value in {"loss": main.loss, **main.metrics}.items():
                self._seen.setdefault(name, []).append(value.detach())
        self.global_step += 1
        completed(self.objective).after_step(self.global_step)

    def _main(self, batch: Batch) -> Term:
        name = self.objective.name
        main = self.objective.compute(Fed(self.model, self.feed, self.sync), batch, self.global_step)
        check_term(main, f"objective {name}")
        # Otherwise it could be mistaken for the loss or for a regularizer's metric.
        if wrong := [metric for metric in main.metrics if not metric.startswith(f"{name}_")]:
            raise LayerSyncError(f"objective {name} returned a metric {wrong[0]!r}; call it {name}_{wrong[0]}")
        return main

    def read_metrics(self) -> dict[str, float]:
        """Return the means since the last reading over steps, accumulation and ranks; the only wait for the device."""
        seen = {name: torch.stack(values).mean() for name, values in self._seen.items()}
        tensors = {**seen, **self.sync.metrics()}
        self._seen.clear()
        values = torch.stack([value.detach().float().to(self.accelerator.device) for value in tensors.values()])
        means = self.accelerator.reduce(values, reduction="mean").tolist()
        return dict(zip(tensors, means, strict=True))

    def run(
        self,
        batches_of_step: Callable[[int], Iterator[Batch]],
        last_step: int,
        stop: Stop,
        logging_steps: int,
        checkpointing_steps: int,
        save: Callable[[], None],
        show: Callable[[dict[str, float], int], None],
    ) -> None:
        """Train until the last step or a stop, logging and saving along the way and at the end.

        Args:
            batches_of_step: Gives this rank's batches of an optimiser step.
            last_step: Total number of optimiser steps.
            stop: Says when to stop early.
            logging_steps: Steps between readings of the metrics.
            checkpointing_steps: Steps between checkpoints.
            save: Writes a checkpoint.
            show: Called with the metrics and the step they were read at.
        """
        while self.global_step < last_step:
            self.step(batches_of_step(self.global_step))
            done, stopping = self.global_step == last_step, stop.requested()
            if self.global_step % logging_steps == 0 or done or stopping:
                metrics = self.read_metrics()
                self.history.append({"step": self.global_step, **metrics})
                show(metrics, self.global_step)
            if self.global_step % checkpointing_steps == 0 or done or stopping:
                save()
            if stopping:
                break
