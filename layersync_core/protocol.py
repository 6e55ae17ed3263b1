"""What others implement (Adapter, Tiny, Regularizer, Objective), and the small data they exchange.

Importing this module imports no torch: entry points of adapters and plugins are read without it.
"""

# Shapes: B batch, S tokens, D channels, T frames, P tokens a frame

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layersync_core.capture.buffer import HiddenStateBuffer

API_VERSION = 1
"""Version of the adapter protocol; an adapter that declares another one is not used."""

TokenSet = Literal["target", "all"]
"""Which tokens count: the generated ones, or reference tokens (edit models) as well."""

Modality = Literal["image", "video", "audio"]
"""What a sample shows: an image of C, H, W, a clip of C, T, H, W or a sound of C, L."""


@dataclass(frozen=True)
class Block:
    """One transformer block.

    Attributes:
        index: Position in execution order, from 0.
        path: Module path in the model, such as ``blocks.7``.
        stack: Path of the list that holds it, such as ``blocks``.
        width: Channels of its output; None where the adapter cannot tell.
        stage: Blocks of different stages have tokens of different resolution and cannot be paired.
        depth: How many blocks the model has; 0 where unknown.
        video: Its tokens have frames.
    """

    index: int
    path: str
    stack: str = ""
    width: int | None = None
    stage: str = ""
    depth: int = 0
    video: bool = False

    def __str__(self) -> str:
        of = f" of {self.depth}" if self.depth else ""
        return f"block {self.index + 1}{of} ({self.path})"


@dataclass(frozen=True)
class Tokens:
    """What one training forward left behind, beside the hidden states in the buffer.

    Attributes:
        target: (B, S) bool, True for generated tokens; None when all are.
        real: (B, S) bool, True for generated and reference tokens, False for padding; None when all are real.
        grid: (T, H, W) of the tokens in raster order; None where the model does not say.
        tracked: ``layer index -> the tensor the block returned``, for judging gradients.
        spans: ``layer index -> where the tokens stand in that tensor``.
        video: The tokens have frames: without a grid they cannot be viewed by frame.
    """

    target: Tensor | None = None
    real: Tensor | None = None
    grid: tuple[int, int, int] | None = None
    tracked: Mapping[int, Tensor] = field(default_factory=dict)
    spans: Mapping[int, slice] = field(default_factory=dict)
    video: bool = False


@dataclass(frozen=True)
class Term:
    """A regularizer's contribution to one step, or an objective's main loss of one batch.

    Attributes:
        loss: Scalar tensor, weight included.
        metrics: Names and scalar tensors to log; whoever reads the term detaches and averages them.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class States(Protocol):
    """Hidden states of one training forward, as regularizers see them."""

    @property
    def mask(self) -> Tensor | None:
        """(B, S) bool, True for the generated tokens; None when every token counts."""

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """(T, H, W) of the tokens in raster order, or None."""

    @property
    def sample_weight(self) -> Tensor | None:
        """(B,) weights of the host, as given to ``apply``."""

    def tokens(self, layer: int) -> Tensor:
        """Return (B, S, D): the image, video or audio tokens of a layer."""

    def frames(self, layer: int) -> Tensor:
        """Return (B, T, P, D): the same tokens by frame; T is 1 for images."""

    def trainable_tokens(self, layer: int) -> Tensor:
        """Return ``tokens(layer)``; raise CaptureError unless they depend on a trainable parameter."""

    def measured_tokens(self, layer: int, name: str) -> Tensor:
        """Return ``trainable_tokens(layer)``; record under ``name`` the gradient that flows back through them, as a
        norm relative to that of all else.
        """

    def mask_of(self, tokens: TokenSet) -> Tensor | None:
        """Return the (B, S) mask of a token set; None when every token counts."""


@runtime_checkable
class CaptureHandle(Protocol):
    """A running capture: stores the asked layers of each training forward until they are read."""

    enabled: bool

    def collect(self) -> Tokens:
        """Put the states of the last training forward into the buffer; raise CaptureError when there are none."""

    def discard(self) -> None:
        """Forget the last forward."""

    def paused(self) -> AbstractContextManager[None]:
        """Leave the forwards inside the context alone."""

    def remove(self) -> None:
        """Take every hook off the model."""


@runtime_checkable
class Adapter(Protocol):
    """What a model family tells about itself. ``BlockStackAdapter`` implements it from data."""

    family: str
    api_version: int
    model_classes: tuple[str, ...]

    def supports_hidden_states(self, model: nn.Module) -> bool:
        """Return whether this adapter knows the model's class and finds its blocks."""

    def list_blocks(self, model: nn.Module) -> list[Block]:
        """Return every block in execution order."""

    def capture(self, model: nn.Module, layers: Collection[int], buffer: HiddenStateBuffer) -> CaptureHandle:
        """Start capturing the given layers into the buffer."""


class Tiny(Protocol):
    """What an adapter's module ``tiny`` has: a model of a few thousand weights, and how that model is fed.

    ``layersync list-supported --check`` needs the two functions, ``layersync train`` all of it.

    Optional: ``grid``, the sizes of the axes that stand in a parenthesis of ``axes``, such as ``(4, 4)``; ``channels``,
    how many of the first channels are noisy, where those of a condition follow them in one tensor; ``labels``, the name
    of the class labels among the inputs, (B,) integers, and with it ``classes(model) -> int``, how many classes a model
    knows; ``prediction(output, sample) -> Tensor``, what a forward returned, shaped like the sample that it was given,
    where it returned no tensor of that shape.
    """

    @property
    def modality(self) -> Modality:
        """What a sample shows."""

    @property
    def sample(self) -> str:
        """Name of the noisy sample among the inputs."""

    @property
    def axes(self) -> str:
        """Axes of the noisy sample: B batch, C channels, T frames, H height, W width, L positions of a sound.

        ``BCHW``, ``BCTHW``, ``BTHWC`` or another order; without B, as in ``CTHW``, the model takes a list of samples.
        An image may have a T of one frame. Axes in a parenthesis are one: ``B(THW)C`` is a sequence of tokens, the rows
        of the first frame first, and in ``B(HW)(C22)`` a token is 2x2 pixels, as in Flux.
        """

    @property
    def timestep(self) -> str:
        """Name of the timestep among the inputs."""

    def tiny_model(self) -> nn.Module:
        """Return the model with random weights."""

    def example_inputs(self, model: nn.Module, batch_size: int) -> dict[str, Any]:
        """Return random arguments of the model's forward by name."""


@runtime_checkable
class Regularizer(Protocol):
    """A loss on hidden states.

    Optional: ``module``, a trainable part that exists once ``layers`` was called; ``active(step) -> bool``, where False
    stops the capture as well; ``begin(model)``, called at the first training step; ``describe() -> list[str]``, lines
    such as ``student: block 8 of 28 (blocks.7)``.

    Attributes:
        name: Identifier, unique among the regularizers of a run.
        order: Terms are computed in rising order (CREPA 100, LayerSync 200).
    """

    name: str
    order: int

    def layers(self, blocks: Sequence[Block]) -> set[int]:
        """Return the layers to capture; raise ConfigError when the model has none that fit."""

    def compute(self, states: States, step: int) -> Term | None:
        """Return this step's term, or None."""


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
