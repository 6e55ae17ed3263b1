"""What discovery finds, as plain data, and the layout made from it. Imports no torch."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any, Literal

from pydantic import ConfigDict, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from layersync_core.capture.layout import BlockStack, ForwardCall, ModelLayout
from layersync_core.documentation import docs_page
from layersync_core.errors import CaptureError, ConfigError

Element = int | str | tuple[int | str, ...] | None
"""Where a tensor is in what a block returns, in the form of ``BlockStack.element``."""

Axes = Literal["BCHW", "BHWC", "BCTHW", "BTCHW", "BTHWC"]
"""Axes of latents, in their order."""

Range = tuple[int, int]
"""First token, and the one after the last."""

VERSION = 1
_NOTHING_ELSE = ConfigDict(extra="forbid")
_SHOWN = 3


@dataclass(frozen=True)
class FoundStack:
    """One list of blocks.

    Attributes:
        path: Module path of the list.
        depth: Number of blocks in it.
        block_class: Class name of its first block.
        element: Where the generated stream is in what a block returns.
        joined: Where the image, video or audio tokens are in that tensor.
        offset: Number of tokens beyond them at that end, such as registers, the same in every call.
        length: Tokens in that tensor in the call that was measured.
        width: Its channels; None where unknown.
        stage: Blocks of different stages have tokens of different resolution; empty where there is only one.
        batched: False where a block returns (S, D), the tokens of one sample.
        sequence_first: True where a block returns (S, B, D).
        gridded: True where a block returns (B, T, H, W, D).
    """

    __pydantic_config__ = _NOTHING_ELSE

    path: str
    depth: PositiveInt
    block_class: str = ""
    element: Element = None
    joined: Literal["all", "first", "last"] = "all"
    offset: NonNegativeInt = 0
    length: int = 0
    width: int | None = None
    stage: str = ""
    batched: bool = True
    sequence_first: bool = False
    gridded: bool = False

    def block_stack(self) -> BlockStack:
        """Return the list as a layout describes it."""
        width = self.width
        return BlockStack(
            self.path,
            element=self.element,
            joined=self.joined,
            offset=self.offset,
            whole=self.joined != "all" and self.element is not None,
            width=None if width is None else lambda model, block: width,
            stage=self.stage,
            batched=self.batched,
            sequence_first=self.sequence_first,
            gridded=self.gridded,
        )


@dataclass(frozen=True)
class Latents:
    """The argument whose axes are the grid of the tokens.

    Attributes:
        argument: Its name.
        axes: Its axes by letter, such as ``BCTHW``.
        patch: Size of a token along T, H and W.
    """

    __pydantic_config__ = _NOTHING_ELSE

    argument: str
    axes: Axes
    patch: tuple[PositiveInt, PositiveInt, PositiveInt]

    def grid(self, call: ForwardCall) -> tuple[int, int, int] | None:
        """Return (T, H, W) of the tokens of a call; None where they do not fill it."""
        sizes = self._sizes(call)
        return sizes if sizes is not None and prod(sizes) == call.tokens else None

    def count(self, call: ForwardCall) -> int:
        """Return the number of tokens in a call.

        Raises:
            CaptureError: The argument has other axes.
        """
        sizes = self._sizes(call)
        if sizes is None:
            raise CaptureError(
                f"{self.argument} counts the tokens of {type(call.model).__name__} and has axes {self.axes} "
                "where they were measured; this call has others, so its tokens cannot be counted"
            )
        return prod(sizes)

    def _sizes(self, call: ForwardCall) -> tuple[int, int, int] | None:
        latents = call.arguments.get(self.argument)
        if latents is None or getattr(latents, "ndim", 0) != len(self.axes):
            return None
        sizes = dict(zip(self.axes, latents.shape, strict=True))
        frames, rows, columns = (sizes.get(axis, 1) // step for axis, step in zip("THW", self.patch, strict=True))
        return frames, rows, columns


@dataclass(frozen=True)
class Question:
    """What measuring could not decide.

    Attributes:
        about: ``blocks``, ``element``, ``tokens`` or ``embedder``.
        text: What is open, in a clause, and why.
        candidates: The possible answers.
    """

    about: str
    text: str
    candidates: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.text}{': ' if self.candidates else ''}{' or '.join(self.candidates)}"


@dataclass(frozen=True)
class Discovery:
    """What one call of a model showed.

    Attributes:
        model_class: Class name of the model.
        stacks: Its lists of blocks in execution order; none where ``questions`` ask for them.
        tokens: Image, video or audio tokens of a sample in that call, including references and padding.
        generated: For each sample, where the tokens that the loss sees are in the tensor of the last block.
        embedder: Path of the module whose output has these tokens; None where nothing has to be counted.
        by_latents: No module returns them, so they are counted by their grid.
        measured: The loss sees only some of these tokens, so every call is measured.
        latents: Gives their grid; None where the shapes do not show it.
        video: They have frames.
        questions: What could not be decided.
    """

    __pydantic_config__ = _NOTHING_ELSE

    model_class: str
    stacks: tuple[FoundStack, ...] = ()
    tokens: int = 0
    generated: tuple[tuple[Range, ...], ...] = ()
    embedder: str | None = None
    by_latents: bool = False
    measured: bool = False
    latents: Latents | None = None
    video: bool = False
    questions: tuple[Question, ...] = ()

    def require_answers(self) -> None:
        """Refuse a discovery that left questions open.

        Raises:
            ConfigError: There is a question; the message lists the candidates.
        """
        if self.questions:
            asked = "; ".join(map(str, self.questions))
            raise ConfigError(
                f"measuring alone cannot identify the blocks and tokens of {self.model_class}: {asked}. Write an "
                f"adapter that says it, which layersync new-adapter begins ({docs_page('adapters')})"
            )

    def layout(self) -> ModelLayout:
        """Return the layout of the model's class.

        Raises:
            ConfigError: Something is not decided.
        """
        self.require_answers()
        return ModelLayout(**self.layout_fields())

    def layout_fields(self) -> dict[str, Any]:
        """Return the arguments of ``ModelLayout``."""
        return {
            "model_classes": self.model_class,
            "block_class": self.stacks[0].block_class if self.stacks else "",
            "stacks": [stack.block_stack() for stack in self.stacks],
            "embedder": self.embedder,
            "image_tokens": self.latents.count if self.by_latents and self.latents else None,
            "measured": self.measured,
            "grid": None if self.latents is None else self.latents.grid,
            "video": self.video,
        }

    def lines(self) -> list[str]:
        """Return what was found in three lines: blocks, element, tokens."""
        blocks = [f"{stack.path} ({stack.depth})" for stack in self.stacks]
        if len(blocks) > _SHOWN:
            blocks[1:-1] = [f"{len(blocks) - 2} more lists"]
        elements = {stack.path: f"{_element(stack)}{_place(stack)}" for stack in self.stacks}
        alike = [*dict.fromkeys(elements.values())]
        several = [f"{element} of {path}" for path, element in elements.items()]
        ranges = dict.fromkeys(_ranges(sample) for sample in self.generated)
        length = self.stacks[-1].length if self.stacks else 0
        seen = " or ".join(ranges) or "none"
        counted = f", counted by {self.embedder}" if self.embedder else ""
        again = ", measured in every step" if self.measured else ""
        return [
            f"blocks: {', '.join(blocks) or 'none'}",
            f"element: {'; '.join(alike if len(alike) == 1 else several) or 'none'}",
            f"tokens: {seen} of {length} in the last block{counted}{again}",
        ]

    def as_data(self) -> dict[str, Any]:
        """Return it for JSON, without widths and lengths, which belong to one model and one call."""
        self.require_answers()
        content = asdict(self)
        for name in ("questions", "generated", "tokens"):
            del content[name]
        for stack in content["stacks"]:
            del stack["width"], stack["length"]
        return {"layersync_adapter": VERSION, **content}

    @classmethod
    def from_data(cls, content: Mapping[str, Any], source: str) -> Discovery:
        """Return the discovery that ``as_data`` wrote.

        Args:
            content: From JSON.
            source: What the messages call it.

        Raises:
            ConfigError: It is something else.
        """
        if content.get("layersync_adapter") != VERSION:
            raise ConfigError(
                f"{source} isn't an adapter file of this version; layersync inspect MODEL --inputs FILE --save "
                f"{source} writes one"
            )
        given = {key: value for key, value in content.items() if key != "layersync_adapter"}
        try:
            # Validated as JSON, which has lists for tuples; strict mode converts nothing else.
            found = TypeAdapter(cls).validate_json(json.dumps(given), strict=True)
        except ValidationError as error:
            wrong = error.errors()[0]
            place = ".".join(map(str, wrong["loc"]))
            raise ConfigError(f"{source} isn't an adapter file: {place or 'it'}: {_small(wrong['msg'])}") from None
        paths = [stack.path for stack in found.stacks]
        if not paths or len({*paths}) < len(paths):
            raise ConfigError(f"{source} isn't an adapter file: stacks {paths} needs at least one list, each only once")
        try:
            found.layout()
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{source} isn't an adapter file: {error}") from None
        return found


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]


def _element(stack: FoundStack) -> str:
    return "the tensor" if stack.element is None else f"element {stack.element!r}"


def _place(stack: FoundStack) -> str:
    if stack.joined == "all":
        return ""
    beside = f", {stack.offset} apart from the end" if stack.offset else ""
    return f" ({stack.joined} tokens{beside})"


def _ranges(ranges: Sequence[Range]) -> str:
    return ", ".join(f"{start} to {stop - 1}" for start, stop in ranges) or "none"
