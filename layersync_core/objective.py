"""What a plugin implements to replace the main loss of the reference trainer."""

# Shapes: B batch, C channels, T frames, H height, W width, L positions of audio

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layersync_core.protocol import Term


class Batch(Protocol):
    """Samples of one forward on one rank, with random numbers that don't depend on how a step is split over either.

    Draw further random numbers with ``uniform`` and ``normal``, which have the same property. Torch's own generators
    are saved in checkpoints, but start out equal on every rank.
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
        """(B,) classes, some of them dropped for guidance; meaningless if the model takes no classes."""

    @property
    def noisy(self) -> Tensor:
        """(B, *shape): (1 - time) · clean + time · noise."""

    @property
    def unconditional(self) -> Tensor | None:
        """(B,) the null class, for guidance; None if the model has none."""

    def uniform(self, name: str) -> Tensor:
        """Return (B,) numbers in [0, 1) that differ for every step and name."""

    def normal(self, name: str) -> Tensor:
        """Return (B, *shape) standard normal numbers that differ for every step and name."""


class Predict(Protocol):
    """The model in training, as an objective calls it."""

    def __call__(self, noisy: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return what the model predicts, (B, *shape), for noisy samples (B, *shape), times (B,) and classes (B,)."""

    def paused(self) -> AbstractContextManager[None]:
        """Hide the forwards inside the context from regularizers; they still have gradients."""


@runtime_checkable
class Objective(Protocol):
    """A main loss that replaces flow matching's, for ``layersync train``.

    Exactly one forward per batch is the main pass, whose hidden states LayerSync, CREPA and other regularizers read:
    every other one runs inside ``predict.paused()`` or under ``torch.no_grad()``. A second one outside of both is a
    CaptureError, and so is a batch without a main pass.

    Attributes:
        name: Identifier; the names of its metrics begin with it and ``_``.
    """

    name: str

    def compute(self, predict: Predict, batch: Batch, step: int) -> Term:
        """Return the main loss of a batch, a scalar with gradient, and metrics; must not wait for the device.

        Args:
            predict: Calls the model.
            batch: The samples to train on.
            step: Optimiser step, from 0.
        """


class ObjectiveBase:
    """The optional members of an objective, with their defaults; subclassing it is not needed.

    Attributes:
        module: The objective's own module, created by the time ``begin`` returns: its parameters are trained if they
            require gradients, and all of its state is saved and restored with the run.
    """

    module: nn.Module | None = None

    def begin(self, model: nn.Module, guided: bool) -> None:
        """Prepare, before the model is wrapped and its optimiser created; may add parts to the model.

        Also called for a model without weights, so that it can refuse a model early.

        Args:
            model: The model, bare.
            guided: Whether it has a null class.

        Raises:
            ConfigError: The model does not fit.
        """

    def describe(self) -> list[str]:
        """Return lines to print when the run begins."""
        return []

    def after_step(self, step: int) -> None:
        """React to an optimiser step, after which ``step`` of them are done; must not wait for the device."""

    def draw(self, predict: Predict, noise: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return further samples of the trained model by title, each (B, *shape), without gradients.

        Args:
            predict: Calls the model.
            noise: (B, *shape) standard normal, from which the usual samples were drawn.
            labels: (B,) classes.
        """
        return {}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write what was added to the model beside its weights, and remove it from the model.

        Args:
            model: The trained model, bare, which is written into ``folder`` next.
            folder: The folder, which may not exist yet.
        """


OPTIONAL = ("module", "begin", "describe", "after_step", "draw", "export")


def completed(objective: Objective) -> ObjectiveBase:
    """Return an objective with the optional members that it leaves out filled in."""
    return cast(ObjectiveBase, _Completed(objective))


class _Completed:
    def __init__(self, objective: Any) -> None:
        self._objective, self._base = objective, ObjectiveBase()

    def __getattr__(self, name: str) -> Any:
        if hasattr(self._objective, name):
            return getattr(self._objective, name)
        return getattr(self._base, name)
