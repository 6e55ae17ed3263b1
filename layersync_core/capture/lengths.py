"""Check that the captured blocks hold all tokens that went in. Only shapes are compared, so no step waits for a device.

Changes that keep the number of tokens are invisible here: tokens that change places, or are merged and padded again.
"""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from torch import Tensor, nn

from layersync_core.capture.forward import Forward
from layersync_core.capture.layout import BlockStack
from layersync_core.errors import CaptureError

CAUSE = (
    "tokens were dropped, added or merged between blocks (token routing such as TREAD, token merging, or a sequence "
    "that is split over ranks); switch that off, or choose a pair of blocks that hold all tokens"
)
_ADAPTER = (
    "in its BlockStack, element names the image among several tensors, and joined="
    '"first" or "last" says where it is in one sequence of text and image'
)
_SPLIT = (
    "so each rank would align a part of the tokens and the term would count once per rank; train without sequence "
    "parallelism, or switch LayerSync off"
)


@dataclass(frozen=True)
class Dual:
    """The block after which the streams are joined: the last of a stack with separate streams for text and image."""

    index: int
    module: nn.Module
    image: int
    """Position of the image in the tuple that the block returns."""
    sequence_first: bool = False

    def text(self, forward: Forward) -> int | None:
        """Return the number of tokens beside the image after the block; None where its output does not show it."""
        output = forward.outputs.get(self.index)
        shapes = forward.streams if output is None else shapes_of(output)
        if shapes is None or self.image >= len(shapes):
            return None
        image = shapes[self.image]
        others = [shape for at, shape in enumerate(shapes) if at != self.image and shape is not None]
        # Streams that can be joined differ only in their number of tokens; anything else allows no conclusion.
        if image is None or len(image) < 2 or len(others) != 1 or len(others[0]) != len(image):
            return None
        axis = 0 if self.sequence_first else len(image) - 2
        text, like = [*others[0]], [*image]
        count = text.pop(axis)
        del like[axis]
        return count if text == like else None


def last_dual(found: Sequence[tuple[BlockStack, str, nn.Module]], layers: Collection[int]) -> Dual | None:
    """Return the last block with separate streams before the joined stacks of some layers; None where there is none."""
    joined = [index for index in layers if found[index][0].joined != "all"]
    if not joined:
        return None
    for index in range(max(joined) - 1, -1, -1):
        stack, _, module = found[index]
        if stack.joined == "all":
            known = isinstance(stack.element, int) and stack.sequence_first is not None
            return Dual(index, module, stack.element, bool(stack.sequence_first)) if known else None  # type: ignore[arg-type]
    return None


def shapes_of(output: Any) -> tuple[Sequence[int] | None, ...] | None:
    """Return the shapes of the tensors in a tuple; None for anything but a tuple."""
    if not isinstance(output, (tuple, list)):
        return None
    return tuple(item.shape if isinstance(item, Tensor) else None for item in output)


@dataclass
class Lengths:
    """The lengths that the blocks of one forward returned, compared as they come in.

    Args:
        count: Image tokens according to the patch embedder or ``image_tokens``; None where neither is known.
        counted_by: Which of the two it was.
        joint: Tokens of a joined sequence; None where unknown.
        samples: Possible numbers of samples in the batch; empty where unknown.
        exact: ``samples`` is the number that the module which counts the tokens gave.
    """

    count: int | None
    counted_by: str
    joint: int | None = None
    samples: frozenset[int] = frozenset()
    exact: bool = False
    _seen: dict[str, tuple[str, int]] = field(default_factory=dict)

    def settle_axes(self, stack: BlockStack, path: str, shape: Sequence[int]) -> BlockStack:
        """Compare the axes of what a block returned with the samples that went in.

        Args:
            stack: The block's stack.
            path: The block's path.
            shape: Shape of the tensor that the adapter takes for hidden states.

        Returns:
            The stack, with ``sequence_first`` settled.

        Raises:
            CaptureError: Samples and tokens are the other way round, or the number of samples differs.
        """
        if not stack.batched:
            return stack
        if stack.sequence_first is None:
            fitting = [first for first in (False, True) if self.exact and shape[first] in self.samples]
            if len(fitting) != 1:
                raise CaptureError(
                    f"{path} returned {tuple(shape)}; whether its samples or its tokens come first is read from the "
                    f"samples that {self.counted_by} gave, which are {_listed(self.samples)}, and is ambiguous here: "
                    "train batches of another size, with the model's own embedder"
                )
            return replace(stack, sequence_first=fitting[0])
        length, batch = shape[:2] if stack.sequence_first else (shape[1], shape[0])
        turned = length in self.samples
        # A single sample may be a whole batch packed into one sequence.
        packed = batch == 1 and not self.exact
        embedded_so = self.exact and self.count == batch  # what the embedder returned has its tokens first
        if packed or batch in self.samples or not (turned or embedded_so):
            return stack
        advice = ["leave out" if stack.sequence_first else "write"] * turned
        advice = [f"{word} sequence_first=True in its BlockStack" for word in advice]
        advice += [f"where {self.counted_by} returns tokens first, give image_tokens in its place"] * self.exact
        where = f"{self.counted_by if self.exact else 'the call'} has {_listed(self.samples)} samples"
        raise CaptureError(
            f"{path} returned {tuple(shape)}, which its adapter reads as {batch} samples of {length} tokens, where "
            f"{where}: {'; or '.join(advice)}"
        )

    def check(self, stack: BlockStack, path: str, length: int, alone: bool) -> None:
        """Compare the length that a block returned with the number of tokens that went in.

        Args:
            stack: The block's stack.
            path: The block's path.
            length: Tokens in the tensor that the adapter takes for hidden states.
            alone: The block returned only that tensor.

        Raises:
            CaptureError: It holds other tokens.
        """
        count, cut = self.count, stack.joined != "all"
        if count is not None and (length < count or (length > count and not cut)):
            raise CaptureError(
                f"{path} returned {length} tokens where {self.counted_by} gave {count}{_part(length, count)}: {CAUSE}. "
                f"If none of these is in use, the adapter is wrong: {_ADAPTER}"
            )
        # In a tuple the image may be on its own; a joined sequence that lost tokens must not be mistaken for that.
        apart = not alone and not stack.whole and length == count
        if cut and self.joint is not None and count is not None and length != self.joint and not apart:
            raise CaptureError(
                f"{path} returned a sequence of {length} tokens where {self.joint} were joined, {count} of the image "
                f"and {self.joint - count} beside them{_part(length, self.joint)}: {CAUSE}. If the model itself joins "
                "other tokens, joined_tokens of the adapter gives their number"
            )
        other, before = self._seen.setdefault(stack.path if cut else f"stage {stack.stage}", (path, length))
        if before != length:
            raise CaptureError(f"{other} returned {before} tokens and {path} {length}: {CAUSE}")

    def check_grid(self, forward: Forward, blocks: Collection[tuple[BlockStack, str]], length: int) -> None:
        """Compare tokens that no embedder counts with the grid of the call's latents.

        Raises:
            CaptureError: There are fewer. More may be references that a fork adds.
        """
        if any(stack.stage for stack, _ in blocks):  # stages have other resolutions
            return
        try:
            grid = forward.grid
        except (AttributeError, LookupError, TypeError, ValueError):
            return  # an unknown grid is an error only for those who need one
        expected = None if grid is None else prod(grid)
        if expected is not None and length < expected:
            raise CaptureError(
                f"{' and '.join(path for _, path in blocks)} returned {length} tokens where the model's input has "
                f"{' x '.join(map(str, grid or ()))} = {expected}{_part(length, expected)}: {CAUSE}"
            )


def refuse_split(modules: Iterable[nn.Module]) -> None:
    """Refuse diffusers' context parallelism, wherever it splits the sequence.

    Args:
        modules: The model, and the blocks and embedders whose inputs may be split.

    Raises:
        CaptureError: One of them splits it.
    """
    for module in modules:
        own = vars(module)
        config = getattr(own.get("_parallel_config"), "context_parallel_config", None)
        hooks: Mapping[str, Any] | None = getattr(own.get("_diffusers_hook"), "hooks", None)
        if config is not None or (hooks and any(name.startswith("cp_input") for name in hooks)):
            raise CaptureError(
                f"diffusers' context parallelism splits the tokens of {type(module).__name__} over ranks, {_SPLIT}"
            )


def refuse_sharded(state: Tensor, path: str, axis: int = -2) -> None:
    """Refuse hidden states that are sharded over their tokens.

    Args:
        state: The hidden states.
        path: Path of the block.
        axis: The axis of the tokens.

    Raises:
        CaptureError: They are a ``DTensor`` with tokens on several ranks.
    """
    distributed = sys.modules.get("torch.distributed.tensor")  # without it there are no DTensors
    if distributed is None or not isinstance(state, distributed.DTensor):
        return
    for place, placement in enumerate(state.placements):
        # By attribute: a sharding over two axes of a mesh isn't a torch Shard, but has its dim.
        if getattr(placement, "dim", None) != axis % state.ndim or state.device_mesh.size(place) == 1:
            continue
        raise CaptureError(
            f"{path} returned a DTensor whose tokens are sharded over ranks ({state.placements}), {_SPLIT}"
        )


def _listed(numbers: Collection[int]) -> str:
    return " or ".join(map(str, sorted(numbers))) or "none"


def _part(length: int, whole: int) -> str:
    """Return a clause for a length that sequence parallelism would explain; empty for any other."""
    if not 0 < length < whole or whole % length:
        return ""
    return f" (exactly 1/{whole // length}, as on each of {whole // length} ranks that share a sequence)"
