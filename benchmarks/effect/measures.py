"""Measures of a trained model: linear probes, CKA, and samples judged by a small classifier."""

# Shapes: N blocks, B samples, S tokens, D channels, F features of the classifier

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.effect.arms import Scale
from benchmarks.effect.depth import blocks_of, changes, losses_without, runs
from benchmarks.effect.results import Call, Compared, Depth, Mark
from benchmarks.effect.tasks import Task
from layersync_core import allowed_places
from layersync_core.protocol import Adapter
from layersync_plugin_trainer.config import SuggestConfig
from layersync_plugin_trainer.data import Dataset, generator
from layersync_plugin_trainer.feeding import Feed
from layersync_plugin_trainer.objective import Batch, draw, held_out_loss, sample
from layersync_plugin_trainer.similarity import block_states
from layersync_plugin_trainer.suggest import measure

CHUNK = 32
"""Samples in a forward whose states are read: it keeps the graph, which takes gigabytes for many at a time."""
DEPTH_TIME = 0.5
"""Share of noise at which it is measured how much each block changes, and at which predictions are made."""
CALLED, CALLED_AT_ONCE = 1024, 64
"""Samples from which a prediction is made, and how many of them are in a batch."""
_MANY = 20  # classes
Floats = NDArray[np.float64]


class Judge:
    """A small classifier of a task's real samples, whose last hidden layer gives the features for the Fréchet distance.

    Trained once per process, always from the same weights, so that every arm gets the same judge.
    """

    def __init__(self, data: Dataset) -> None:
        from sklearn.neural_network import MLPClassifier

        self._net = MLPClassifier((128, 32), max_iter=1000, random_state=0)
        self._net.fit(_flat(data.samples), data.labels.numpy())
        self._real = self.features(data.samples)
        self.accuracy_on_real = self.accuracy(data.held_out, data.held_out_labels)
        self.distance_of_real = self.distance(data.held_out)

    def features(self, samples: Tensor) -> Floats:
        """Return (B, F)."""
        hidden = _flat(samples)
        for weight, bias in zip(self._net.coefs_[:-1], self._net.intercepts_[:-1], strict=True):
            hidden = np.maximum(hidden @ weight + bias, 0)
        return hidden

    def accuracy(self, samples: Tensor, labels: Tensor) -> float:
        """Return the share of samples that are recognised as the requested class."""
        return float(self._net.score(_flat(samples), labels.numpy()))

    def distance(self, samples: Tensor) -> float:
        """Return the Fréchet distance to the training data (Heusel et al., arXiv 1706.08500)."""
        return frechet_distance(self.features(samples), self._real)


def frechet_distance(one_BF: Floats, two_BF: Floats) -> float:
    """Return ‖μ₁ - μ₂‖² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½) of two sets of features."""
    cov_one, cov_two = np.cov(one_BF, rowvar=False), np.cov(two_BF, rowvar=False)
    # The trace of the root is the sum of the roots of the eigenvalues, which are real and non-negative here.
    cross = np.sqrt(np.linalg.eigvals(cov_one @ cov_two).real.clip(min=0)).sum()
    shift = np.square(one_BF.mean(0) - two_BF.mean(0)).sum()
    return float(shift + np.trace(cov_one) + np.trace(cov_two) - 2 * cross)


def linear_cka(one_BD: Tensor, two_BD: Tensor) -> float:
    """Return ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) of centred features, 0 to 1 (Kornblith et al., arXiv 1905.00414, equation 3)."""
    one, two = (value.double() - value.double().mean(0) for value in (one_BD, two_BD))
    return float((two.T @ one).square().sum() / ((one.T @ one).norm() * (two.T @ two).norm()))


@dataclass(frozen=True)
class Exam:
    """All measurements of a task's models, the same for every arm and seed.

    Attributes:
        task: The task.
        data: Its data.
        adapter: Its family's adapter.
        feed: How its models are fed.
        scale: How much is measured.
        device: Where the models are.
    """

    task: Task
    data: Dataset
    adapter: Adapter
    feed: Feed
    scale: Scale
    device: torch.device

    @cached_property
    def judge(self) -> Judge:
        """The classifier of samples."""
        return Judge(self._seen)

    @cached_property
    def _seen(self) -> Dataset:
        count = self.task.seen or len(self.data.samples)
        return replace(self.data, samples=self.data.samples[:count], labels=self.data.labels[:count])

    @cached_property
    def _repeated(self) -> Dataset:
        # Each held-out sample with several noises and times, for a steadier loss.
        times = math.ceil(self.scale.evaluated / len(self.data.held_out))
        repeats = [times] + [1] * (self.data.held_out.dim() - 1)
        return replace(
            self.data,
            held_out=self.data.held_out.repeat(repeats),
            held_out_labels=self.data.held_out_labels.repeat(times),
        )

    def held_out(self, model: nn.Module) -> float:
        """Return the loss on samples that training never saw."""
        return held_out_loss(model, self.feed, self._repeated, 0, self.device)

    def examine(self, model: nn.Module, seed: int, span: tuple[int, int] | None = None) -> Mark:
        """Return every measure.

        Args:
            model: The bare model, without an attachment.
            seed: Seed of the noise that samples start from.
            span: First and last of the blocks between student and teacher, if the model has them.

        Raises:
            FloatingPointError: The model's samples or states are not finite.
        """
        count = self.scale.samples
        classes = torch.arange(count) % (int(self.data.labels.max()) + 1)
        drawn = sample(model, self.feed, classes, self.scale.euler_steps, seed, self.device)
        probes: dict[str, list[float]] = {}
        tokens: list[Tensor] = []
        for time in self.task.times:
            train = self._states(model, self._seen.samples, self._seen.labels, time, "probe", pooled=True)
            rest = self._states(model, self._repeated.held_out, self._repeated.held_out_labels, time, "probed")
            if not all(state.isfinite().all() for state in (drawn, *rest)):
                raise FloatingPointError("samples or states are not finite")
            probes[str(time)] = self._probes(train, rest)
            tokens = tokens or [state.flatten(0, 1) for state in rest]
        return Mark(
            held_out=self.held_out(model),
            probe=probes,
            cka=[[round(linear_cka(one, two), 5) for two in tokens] for one in tokens],
            frechet=self.judge.distance(drawn),
            accuracy=self.judge.accuracy(drawn, classes) if self.task.labels else None,
            depth=self._depth(model, span) if self.task.deep else None,
        )

    def call(self, model: nn.Module) -> Call:
        """Return what ``layersync suggest`` says of a model that was trained without LayerSync."""
        batches = 2 if self.scale.is_quick else CALLED // CALLED_AT_ONCE
        config = SuggestConfig.model_validate(
            {"noise_levels": (DEPTH_TIME,), "batches": batches, "batch_size": CALLED_AT_ONCE}
        )
        found = measure(config, model, self.adapter, self.feed, self.data, self.device, bar=False)
        content = found.content()
        pair = content["recommended"][0] if content["recommended"] else None
        return Call(
            compared=[
                Compared(
                    student=student + 1,
                    teacher=teacher + 1,
                    lead=found.gap[0][student][teacher],
                    error=found.gap_error[0][student][teacher],
                    centred=found.centered_cosine[0][student][teacher],
                    rise=found.rise_between(student, teacher),
                )
                for student, teacher in allowed_places(found.described)
            ],
            answer=content["verdict"]["answer"],
            reason=content["verdict"]["reason"],
            pair=pair and (pair["student"], pair["teacher"]),
            stop=pair and pair["stop"],
        )

    def _depth(self, model: nn.Module, span: tuple[int, int] | None) -> Depth:
        batch = self._noisy(self.data.held_out, self.data.held_out_labels, DEPTH_TIME, "depth").to(self.device)

        def loss(model: nn.Module) -> float:
            return held_out_loss(model, self.feed, self.data, 0, self.device)

        return Depth(
            whole=loss(model),
            without=losses_without(model, runs(len(blocks_of(model)), span), loss),
            change=changes(model, lambda whole: self.feed(whole, batch.noisy, batch.time, batch.labels)),
        )

    def _probes(self, train: list[Tensor], rest: list[Tensor]) -> list[float]:
        """Return the accuracy of a linear classifier on each block's tokens, averaged over the tokens."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        labels, asked = self._seen.labels.numpy(), self._repeated.held_out_labels.numpy()
        # Both reach the same classifier; a Newton step takes the cube of the number of classes.
        solver = "newton-cholesky" if labels.max() < _MANY else "lbfgs"
        scores = []
        for seen, unseen in zip(train, rest, strict=True):
            line = LogisticRegression(solver=solver, max_iter=self.scale.probe_rounds)
            probe = make_pipeline(StandardScaler(), line)
            with warnings.catch_warnings():
                if self.scale.is_quick:
                    warnings.simplefilter("ignore", ConvergenceWarning)
                probe.fit(seen.mean(1).numpy(), labels)
            scores.append(float(probe.score(unseen.mean(1).numpy(), asked)))
        return scores

    def _states(
        self, model: nn.Module, samples: Tensor, labels: Tensor, time: float, name: str, pooled: bool = False
    ) -> list[Tensor]:
        """Return (B, S, D) for each block, on noisy samples without their class; (B, 1, D), the mean, if pooled."""
        batch = self._noisy(samples, labels, time, name)
        found = []
        for start in range(0, len(samples), CHUNK):
            states, _ = block_states(model, self.adapter, self.feed, batch[start : start + CHUNK].to(self.device))
            found.append([(state.mean(1, keepdim=True) if pooled else state).float().cpu() for state in states])
        return [torch.cat(pieces) for pieces in zip(*found, strict=True)]

    def _noisy(self, samples: Tensor, labels: Tensor, time: float, name: str) -> Batch:
        """Return samples at one time without their class."""
        batch = draw(samples, labels, generator(0, name))
        null = self.feed.null_label
        return replace(
            batch,
            time=torch.full_like(batch.time, time),
            labels=batch.labels if null is None else torch.full_like(batch.labels, null),
        )


def _flat(samples: Tensor) -> Floats:
    return samples.flatten(1).double().numpy()
