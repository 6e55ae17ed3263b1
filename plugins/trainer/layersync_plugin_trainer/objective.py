"""Flow matching, as in SiT: x_t = (1 - t) x_0 + t noise, the model predicts the velocity noise - x_0.

Lipman et al., arXiv 2210.02747; Ma et al., arXiv 2401.08740 (linear path). t = 0 is data, t = 1 is noise.
"""

# Shapes: G samples of one optimiser step over all ranks and forwards, B samples of one forward on one rank

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
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
"""Share of labels dropped in training, for classifier-free guidance (Ho and Salimans, arXiv 2207.12598)."""


@dataclass(frozen=True)
class Batch:
    """Samples, their noise and their times.

    Attributes:
        clean: (B, *shape) data.
        noise: (B, *shape) standard normal.
        time: (B,) in [0, 1).
        labels: (B,) classes.
        null_label: The label for "no class"; None if there isn't one.
        further: Returns further random numbers by name, normal or uniform; set in batches for training.
    """

    clean: Tensor
    noise: Tensor
    time: Tensor
    labels: Tensor
    null_label: int | None = None
    further: Callable[[str, bool], Tensor] | None = None

    @property
    def noisy(self) -> Tensor:
        """(B, *shape): the point on each sample's path from data to noise at its time."""
        t = self.time.reshape(-1, *[1] * (self.clean.dim() - 1))
        return (1 - t) * self.clean + t * self.noise

    @property
    def unconditional(self) -> Tensor | None:
        """(B,) the null label; None if there isn't one."""
        return None if self.null_label is None else torch.full_like(self.labels, self.null_label)

    def uniform(self, name: str) -> Tensor:
        """Return (B,) numbers in [0, 1) that differ for every step and name."""
        return self._drawn(name, False)

    def normal(self, name: str) -> Tensor:
        """Return (B, *shape) standard normal numbers that differ for every step and name."""
        return self._drawn(name, True)

    def _drawn(self, name: str, normal: bool) -> Tensor:
        assert self.further is not None  # objectives get batches for training
        return self.further(name, normal).to(self.clean.device, non_blocking=True)

    def __getitem__(self, part: slice) -> Batch:
        return self._with(lambda tensor: tensor[part])

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        clean, noise, time, labels = map(change, (self.clean, self.noise, self.time, self.labels))
        return replace(self, clean=clean, noise=noise, time=time, labels=labels)


@dataclass(frozen=True)
class Batches:
    """The batches of every optimiser step, drawn on the CPU from (seed, step) for all ranks and forwards at once.

    A step therefore sees the same samples, noise and times however they are split over processes and accumulation,
    and resuming needs no state.

    Attributes:
        data: The data.
        seed: Seed of the run.
        batch_size: Samples per rank and forward.
        forwards: Forwards per rank and optimiser step (gradient accumulation).
        ranks: Number of processes.
        rank: Rank of this process.
        null_label: The label for "no class"; it replaces a tenth of the labels, as in DiT.
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
        batch = replace(draw(self.data.samples[chosen], self.data.labels[chosen], source), null_label=self.null_label)
        if self.null_label is None:
            return batch
        dropped = torch.rand(size, generator=source) < LABEL_DROPOUT
        return replace(batch, labels=batch.labels.masked_fill(dropped, self.null_label))

    def of_step(self, step: int) -> Iterator[Batch]:
        """Yield this rank's batches of an optimiser step."""
        whole = self.whole(step)
        for forward in range(self.forwards):
            start = (forward * self.ranks + self.rank) * self.batch_size
            part = slice(start, start + self.batch_size)
            yield replace(whole[part], further=partial(self._further, step, whole.clean.shape, part))

    def _further(self, step: int, shape: torch.Size, part: slice, name: str, normal: bool) -> Tensor:
        source = generator(self.seed, "step", step, name)
        drawn = torch.randn(shape, generator=source) if normal else torch.rand(shape[0], generator=source)
        return drawn[part]


def draw(clean: Tensor, labels: Tensor, source: torch.Generator) -> Batch:
    """Return samples with noise and uniform times from a generator."""
    noise = torch.randn(clean.shape, generator=source)
    return Batch(clean, noise, torch.rand(len(clean), generator=source), labels)


def flow_loss(predict: Callable[[Tensor, Tensor, Tensor], Tensor], batch: layersync_core.Batch) -> Tensor:
    """Return the mean squared error of the predicted velocity, a scalar."""
    velocity = predict(batch.noisy, batch.time, batch.labels)
    return torch.nn.functional.mse_loss(velocity.float(), batch.noise - batch.clean)


class FlowMatching:
    """The objective if no plugin brings another."""

    name = "flow matching"

    def compute(self, predict: Predict, batch: layersync_core.Batch, step: int) -> Term:
        """Return the flow-matching loss."""
        return Term(flow_loss(predict, batch))


def enabled(settings: Mapping[str, Any]) -> Objective:
    """Return a new instance of the objective that the plugins' settings enable, flow matching by default.

    Raises:
        ConfigError: Two objectives are enabled, or a setting is wrong.
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
        """Don't capture the forwards inside the context."""
        return self.sync.paused()


@torch.no_grad()
def held_out_loss(model: nn.Module, feed: Feed, data: Dataset, seed: int, device: torch.device) -> float:
    """Return the flow-matching loss on samples that training never saw, always with the same noise and times."""
    batch = draw(data.held_out, data.held_out_labels, generator(seed, "held out"))
    parts = [batch[start : start + 64].to(device) for start in range(0, len(batch.time), 64)]
    weighted = [flow_loss(partial(feed, model), part) * len(part.time) for part in parts]
    return float(torch.stack(weighted).sum()) / len(batch.time)


@dataclass(frozen=True)
class Trained:
    """A model after training as an objective calls it, see ``layersync_core.Predict``; like ``Fed``."""

    model: nn.Module
    feed: Feed

    def __call__(self, noisy: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return the model's prediction, (B, *shape)."""
        return self.feed(self.model, noisy, time, labels)

    def paused(self) -> AbstractContextManager[None]:
        """Do nothing: nothing is attached to the model any more."""
        return nullcontext()


def sample_noise(feed: Feed, count: int, seed: int) -> Tensor:
    """Return the noise that samples start from, (B, *shape) on the CPU."""
    return torch.randn((count, *feed.layout.shape), generator=generator(seed, "samples"))


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
        guidance: Scale of classifier-free guidance; 1 is off. Needs a model with a null class.

    Returns:
        (B, *shape) on the CPU, fp32.
    """
    value, labels = sample_noise(feed, len(labels), seed).to(device), labels.to(device)
    for step in range(steps):
        time = torch.full((len(labels),), 1 - step / steps, device=device)
        velocity = feed(model, value, time, labels).float()
        if guidance != 1 and feed.null_label is not None:
            free = feed(model, value, time, torch.full_like(labels, feed.null_label)).float()
            velocity = free + guidance * (velocity - free)
        value = value - velocity / steps
    return value.cpu()
