"""The protocols that others implement (Adapter, Tiny, Regularizer, Objective), and the data they exchange.

Importing this module does not import torch, since entry points of adapters and plugins are read without it.
"""

# Shapes: B batch, S tokens, D channels, T frames, P tokens per frame

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

    from layersync_core.capture.buffer import HiddenStateBuffer
    from layersync_core.capture.forward import Forward

API_VERSION = 1
"""Version of the adapter protocol; an adapter that declares another version is not used."""

TokenSet = Literal["target", "all"]
"""Which tokens count: the generated ones, or also reference tokens (edit models)."""

Modality = Literal["image", "video", "audio"]
"""What a sample is: an image (C, H, W), a clip (C, T, H, W) or a sound (C, L)."""


@dataclass(frozen=True)
class Block:
    """One transformer block.

    Attributes:
        index: Position in execution order, from 0.
        path: Module path in the model, such as ``blocks.7``.
        stack: Path of the list that holds it, such as ``blocks``.
        width: Channels of its output; None where the adapter does not know.
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
class Term:
    """A regularizer's contribution to one step, or an objective's main loss of one batch.

    Attributes:
        loss: Scalar tensor, weight included.
        metrics: Scalar tensors to log, by name; the reader of the term detaches and averages them.
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
        """(B,) sample weights of the host, as given to ``apply``."""

    def tokens(self, layer: int) -> Tensor:
        """Return (B, S, D): the image, video or audio tokens of a layer."""

    def frames(self, layer: int) -> Tensor:
        """Return (B, T, P, D): the same tokens by frame; T is 1 for images."""

    def trainable_tokens(self, layer: int) -> Tensor:
        """Return ``tokens(layer)``; raise CaptureError unless they depend on a trainable parameter."""

    def tokens_with_grad_ratio(self, layer: int, name: str) -> Tensor:
        """Return ``trainable_tokens(layer)``, and record the norm of the gradient through them under ``name``.

        The norm is relative to that of all other gradient at these tokens.
        """

    def mask_of(self, tokens: TokenSet) -> Tensor | None:
        """Return the (B, S) mask of a token set; None when every token counts."""


@runtime_checkable
class CaptureHandle(Protocol):
    """A running capture: it creates a ``Forward`` for each training forward, and holds it until it has been used.

    Attributes:
        enabled: If False nothing is held, as past the end of every schedule.
        policy: Called with the capture before a training forward begins; it may forget forwards, or refuse by raising.
    """

    enabled: bool
    policy: Callable[[CaptureHandle], None]

    @property
    def forwards(self) -> Sequence[Forward]:
        """The whole training forwards that are held and that a loss may still depend on, in order."""

    @property
    def why_none(self) -> str:
        """Why there isn't a forward to read, as a clause; empty where there is or was one."""

    def collect(self, forward: Forward) -> None:
        """Put the states of a forward into the buffer, and set what its tokens are; CaptureError if that fails."""

    def discard(self, forward: Forward | None = None) -> None:
        """Forget a forward, or all of them, and empty the buffer."""

    def paused(self) -> AbstractContextManager[None]:
        """Ignore the forwards inside the context."""

    def remove(self) -> None:
        """Take every hook off the model."""


@runtime_checkable
class Adapter(Protocol):
    """Describes a model family. ``BlockStackAdapter`` implements it from data."""

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
    """An adapter's module ``tiny``: a model of a few thousand weights, and its inputs.

    ``layersync list-supported --check`` needs only the two functions, ``layersync train`` needs everything.

    Optional: ``grid``, the sizes of the axes in a parenthesis of ``axes``, such as ``(4, 4)``; ``channels``, the number
    of noisy channels, where those of a condition follow them in one tensor; ``labels``, the name of the class labels
    among the inputs, (B,) integers, together with ``classes(model) -> int``, the number of classes that a model knows;
    ``prediction(output, sample) -> Tensor``, the forward's prediction in the shape of the sample, where the forward
    does not return a tensor of that shape.
    """

    @property
    def modality(self) -> Modality:
        """What a sample is."""

    @property
    def sample(self) -> str:
        """Name of the noisy sample among the inputs."""

    @property
    def axes(self) -> str:
        """Axes of the noisy sample: B batch, C channels, T frames, H height, W width, L positions of audio.

        ``BCHW``, ``BCTHW``, ``BTHWC`` or another order; without B, as in ``CTHW``, the model takes a list of samples.
        An image may have a T of one frame. Axes in parentheses are merged: ``B(THW)C`` is a sequence of tokens, the
        rows of the first frame first, and in ``B(HW)(C22)`` a token is 2x2 pixels, as in Flux.
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
    """A loss on hidden states. ``RegularizerBase`` has the optional members.

    Attributes:
        name: Identifier, unique among the regularizers of a run.
        order: Terms are computed in ascending order (CREPA 100, LayerSync 200).
    """

    name: str
    order: int

    def layers(self, blocks: Sequence[Block]) -> set[int]:
        """Return the layers to capture; raise ConfigError if the model has no suitable ones."""

    def compute(self, states: States, step: int) -> Term | None:
        """Return this step's term, or None."""


class StepSchedule(Protocol):
    """What depends on the optimiser step."""

    def active(self, step: int) -> bool:
        """Return whether the weight is nonzero at a step or later."""


class RegularizerBase:
    """The optional members of a regularizer, with their defaults; subclassing it is not needed.

    Attributes:
        module: A trainable part, created by the time ``layers`` returns.
        schedule: What depends on the optimiser step; None where nothing does. It decides whether steps are counted.
        pairs: The resolved pairs of student, teacher and weight, if the loss is made of pairs.
    """

    module: nn.Module | None = None
    schedule: StepSchedule | None = None
    pairs: Sequence[Any] = ()

    def active(self, step: int) -> bool:
        """Return whether the weight is nonzero at a step or later; False also stops the capture."""
        return self.schedule is None or self.schedule.active(step)

    def begin(self, model: nn.Module) -> None:
        """Prepare at the first training step."""

    def describe(self) -> list[str]:
        """Return lines such as ``student: block 8 of 28 (blocks.7)``, printed when the run begins."""
        return []
