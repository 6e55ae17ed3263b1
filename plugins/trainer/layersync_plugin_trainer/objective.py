"""Flow matching, as in SiT: x_t = (1 - t) x_0 + t noise, the model predicts the velocity noise - x_0.

Lipman et al., arXiv 2210.02747; Ma et al., arXiv 2401.08740 (linear path). t = 0 is data, t = 1 is noise.
"""

# Shapes: G samples of one optimiser step over all ranks and forwards, B samples of one forward on one rank

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import layersync_core
from layersync_core import Attachment, LayerSyncConfig, Objective, Predict, Term, plugins
from layersync_plugin_trainer.data import Dataset, generator, positions
from layersync_plugin_trainer.feeding import Feed

LABEL_DROPOUT = 0.1
"""Share of labels left out in training, for classifier-free guidance (Ho and Salimans, arXiv 2207.12598)."""


@dataclass(frozen=True)
class Batch:
    """Samples, their noise and their times.

    Attributes:
        clean: (B, *shape) data.
        noise: (B, *shape) standard normal.
        time: (B,) in [0, 1).
        labels: (B,) classes.
    """

    clean: Tensor
    noise: Tensor
    time: Tensor
    labels: Tensor

    @property
    def noisy(self) -> Tensor:
        """(B, *shape): the point of each sample's path from data to noise at its time."""
        t = self.time.reshape(-1, *[1] * (self.clean.dim() - 1))
        return (1 - t) * self.clean + t * self.noise

    def __getitem__(self, part: slice) -> Batch:
        return Batch(self.clean[part], self.noise[part], self.time[part], self.labels[part])

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        tensors = (self.clean, self.noise, self.time, self.labels)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))


@dataclass(frozen=True)
class Batches:
    """What every optimiser step trains on, drawn on the CPU from (seed, step) for all ranks and forwards at once.

    A step therefore sees the same samples, noise and times however they are split over processes and accumulation,
    and resuming needs no state.

    Attributes:
        data: The data.
        seed: Seed of the run.
        batch_size: Samples a rank and forward.
        forwards: Forwards a rank and optimiser step (gradient accumulation).
        ranks: Number of processes.
        rank: This process.
        null_label: Class that stands for no class; a tenth of the labels become it, as in DiT.
    """

    data: Dataset
    seed: int
    batch_size: int
    forwards: int = 1
    ranks: int = 1
    rank: int = 0
    null_label: int | None = None

    def whole(self, step: int) -> Batch:
        """Return the G samples of an optimiser step."""
        size = self.batch_size * self.forwards * self.ranks
        chosen = positions(self.seed, step * size, size, len(self.data.samples))
        source = generator(self.seed, "step", step)
        batch = draw(self.data.samples[chosen], self.data.labels[chosen], source)
        if self.null_label is None:
            return batch
        dropped = torch.rand(size, generator=source) < LABEL_DROPOUT
        return replace(batch, labels=batch.labels.masked_fill(dropped, self.null_label))

    def of_step(self, step: int) -> Iterator[Batch]:
        """Yield this rank's batches of an optimiser step."""
        whole = self.whole(step)
        for forward in range(self.forwards):
            start = (forward * self.ranks + self.rank) * self.batch_size
            yield whole[start : start + self.batch_size]


def draw(clean: Tensor, labels: Tensor, source: torch.Generator) -> Batch:
    """Return samples with noise and uniform times from a generator."""
    noise = torch.randn(clean.shape, generator=source)
    return Batch(clean, noise, torch.rand(len(clean), generator=source), labels)


def flow_loss(predict: Callable[[Tensor, Tensor, Tensor], Tensor], batch: layersync_core.Batch) -> Tensor:
    """Return the mean squared error of the predicted velocity, a scalar."""
    velocity = predict(batch.noisy, batch.time, batch.labels)
    return torch.nn.functional.mse_loss(velocity.float(), batch.noise - batch.clean)


class FlowMatching:
    """The objective that trains where no plugin brings another."""

    name = "flow matching"

    def compute(self, predict: Predict, batch: layersync_core.Batch, step: int) -> Term:
        """Return the flow-matching loss."""
        return Term(flow_loss(predict, batch))


def enabled(settings: Mapping[str, Any]) -> Objective:
    """Return the objective that the plugins' settings enable, else flow matching; new each time.

    Raises:
        ConfigError: Two are enabled, or a setting is wrong.
    """
    return plugins().objective(LayerSyncConfig.from_mapping(settings)) or FlowMatching()


@dataclass(frozen=True)
class Fed:
    """A model in training as an objective calls it, see ``layersync_core.Predict``.

    Attributes:
        model: The model, wrapped.
        feed: How it is fed.
        sync: Its attachment.
    """

    model: nn.Module
    feed: Feed
    sync: Attachment

    def __call__(self, noisy: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return the model's prediction, (B, *shape)."""
        return self.feed(self.model, noisy, time, labels)

    def paused(self) -> AbstractContextManager[None]:
        """Leave the forwards inside the context alone."""
        return self.sync.paused()


@torch.no_grad()
def held_out_loss(model: nn.Module, feed: Feed, data: Dataset, seed: int, device: torch.device) -> float:
    """Return the flow-matching loss on samples that training never saw, always with the same noise and times."""
    batch = draw(data.held_out, data.held_out_labels, generator(seed, "held out"))
    parts = [batch[start : start + 64].to(device) for start in range(0, len(batch.time), 64)]
    weighted = [flow_loss(partial(feed, model), part) * len(part.time) for part in parts]
    return float(torch.stack(weighted).sum()) / len(batch.time)


@torch.no_grad()
def sample(
    model: nn.Module, feed: Feed, labels: Tensor, steps: int, seed: int, device: torch.device, guidance: float = 1.0
) -> Tensor:
    """Draw samples with Euler's method from noise (t = 1) to data (t = 0).

    Args:
        model: Trained model.
        feed: How it is fed.
        labels: (B,) classes to draw.
        steps: Number of Euler steps.
        seed: Seed of the initial noise.
        device: Where the model is.
        guidance: Scale of classifier-free guidance; 1 is without. Needs a model with a null class.

    Returns:
        (B, *shape) on the CPU, fp32.
    """
    noise = torch.randn((len(labels), *feed.layout.shape), generator=generator(seed, "samples"))
    value, labels = noise.to(device), labels.to(device)
    for step in range(steps):
        time = torch.full((len(labels),), 1 - step / steps, device=device)
        velocity = feed(model, value, time, labels).float()
        if guidance != 1 and feed.null_label is not None:
            free = feed(model, value, time, torch.full_like(labels, feed.null_label)).float()
            velocity = free + guidance * (velocity - free)
        value = value - velocity / steps
    return value.cpu()
