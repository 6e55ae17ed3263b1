"""What a plugin implements that replaces the main loss of the reference trainer."""

# Shapes: B batch, C channels, T frames, H height, W width, L positions of a sound

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from layersync_core.protocol import Term


class Batch(Protocol):
    """Samples of one forward on one rank, with numbers that are the same however a step is split over both.

    An objective that needs further random numbers derives them from these, or draws them from torch's generators, which
    checkpoints keep but which start alike on every rank.
    """

    @property
    def clean(self) -> Tensor:
        """(B, *shape) data in [-1, 1]: shape is (C, H, W), (C, T, H, W) or (C, L)."""

    @property
    def noise(self) -> Tensor:
        """(B, *shape), standard normal."""

    @property
    def time(self) -> Tensor:
        """(B,), uniform in [0, 1): 0 is data, 1 is noise."""

    @property
    def labels(self) -> Tensor:
        """(B,) classes, some of them left out for guidance; without meaning where the model is not told any."""

    @property
    def noisy(self) -> Tensor:
        """(B, *shape): (1 - time) · clean + time · noise."""


class Predict(Protocol):
    """The model in training, as an objective calls it."""

    def __call__(self, noisy: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return what the model predicts, (B, *shape), for noisy samples (B, *shape), times (B,) and classes (B,)."""

    def paused(self) -> AbstractContextManager[None]:
        """Leave the forwards inside the context out of what regularizers read; they have gradients all the same."""


@runtime_checkable
class Objective(Protocol):
    """A main loss in the place of flow matching's, for ``layersync train``.

    Exactly one forward of a batch is the main pass, whose hidden states LayerSync, CREPA and other regularizers read:
    every further one runs inside ``predict.paused()`` or under ``torch.no_grad()``. A second one outside of both is a
    CaptureError, and so is a batch without a main pass.

    Attributes:
        name: Identifier; the names of its metrics begin with it and ``_``.
    """

    name: str

    def compute(self, predict: Predict, batch: Batch, step: int) -> Term:
        """Return the main loss of a batch, a scalar with gradient, and metrics; must not wait for the device.

        Args:
            predict: Calls the model.
            batch: What it trains on.
            step: Optimiser step, from 0.
        """
