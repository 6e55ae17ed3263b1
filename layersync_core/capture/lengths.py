"""Whether the captured blocks hold all tokens that went in. Shapes alone are compared, so no step waits for the device.

What keeps the number of tokens cannot be seen here: tokens that change places, or that are merged and padded again.
"""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
    '"first" or "last" says where it stands in one sequence of text and image'
)
_SPLIT = (
    "so that each rank would align a part of the tokens and the term would count once for each of them; train without "
    "sequence parallelism, or switch LayerSync off"
)


@dataclass(frozen=True)
class Dual:
    """The block whose streams are joined behind it: the last one of a stack with a stream each for text and image."""

    index: int
    module: nn.Module
    image: int
    """Position of the image among what the block returns."""

    def text(self, forward: Forward) -> int | None:
        """Return how many tokens stood beside the image behind the block; None where its output does not show it."""
        output = forward.outputs.get(self.index)
        shapes = forward.streams if output is None else shapes_of(output)
        if shapes is None or self.image >= len(shapes):
            return None
        image = shapes[self.image]
        others = [shape for at, shape in enumerate(shapes) if at != self.image and shape is not None]
        # Streams that can be joined differ in their tokens alone; of anything else nothing is concluded.
        if image is None or len(image) < 2 or len(others) != 1 or len(others[0]) != len(image):
            return None
        text = others[0]
        return text[-2] if (*text[:-2], text[-1]) == (*image[:-2], image[-1]) else None


def last_dual(found: Sequence[tuple[BlockStack, str, nn.Module]], layers: Collection[int]) -> Dual | None:
    """Return the last block before the joined stacks of some layers that has streams; None where there is none."""
    joined = [index for index in layers if found[index][0].joined != "all"]
    if not joined:
        return None
    for index in range(max(joined) - 1, -1, -1):
        stack, _, module = found[index]
        if stack.joined == "all":
            return Dual(index, module, stack.element) if isinstance(stack.element, int) else None
    return None


def shapes_of(output: Any) -> tuple[Sequence[int] | None, ...] | None:
    """Return the shapes of the tensors in a tuple; None for what is no tuple."""
    if not isinstance(output, (tuple, list)):
        return None
    return tuple(item.shape if isinstance(item, Tensor) else None for item in output)


@dataclass
class Lengths:
    """The lengths that one forward's blocks returned, compared as they come.

    Args:
        count: Image tokens by the patch embedder or ``image_tokens``; None where neither is known.
        counted_by: Who says so.
        joint: Tokens of a joined sequence; None where nothing shows them.
    """

    count: int | None
    counted_by: str
    joint: int | None = None
    _seen: dict[str, tuple[str, int]] = field(default_factory=dict)

    def check(self, stack: BlockStack, path: str, length: int, alone: bool) -> None:
        """Compare what a block returned with the number of tokens that went in.

        Args:
            stack: The block's stack.
            path: The block's path.
            length: Tokens in the tensor that the adapter takes for hidden states.
            alone: The block returned that tensor and nothing else.

        Raises:
            CaptureError: It holds other tokens.
        """
        count, cut = self.count, stack.joined != "all"
        if count is not None and (length < count or (length > count and not cut)):
            raise CaptureError(
                f"{path} returned {length} tokens where {self.counted_by} gave {count}{_part(length, count)}: {CAUSE}. "
                f"Where nothing of the kind is in use, the adapter is wrong: {_ADAPTER}"
            )
        # A tuple's image may be on its own, which a joined sequence that lost tokens must not pass for.
        apart = not alone and not stack.whole and length == count
        if cut and self.joint is not None and count is not None and length != self.joint and not apart:
            raise CaptureError(
                f"{path} returned a sequence of {length} tokens where {self.joint} were joined, {count} of the image "
                f"and {self.joint - count} beside them{_part(length, self.joint)}: {CAUSE}. Where the model itself "
                "joins others, joined_tokens of the adapter says how many"
            )
        other, before = self._seen.setdefault(stack.path if cut else f"stage {stack.stage}", (path, length))
        if before != length:
            raise CaptureError(f"{other} returned {before} tokens and {path} {length}: {CAUSE}")

    def check_grid(self, forward: Forward, blocks: Collection[tuple[BlockStack, str]], length: int) -> None:
        """Compare tokens that no embedder counts with the grid that the call's latents have.

        Raises:
            CaptureError: There are fewer. More of them may be references that a fork puts beside.
        """
        if any(stack.stage for stack, _ in blocks):  # stages are of other resolutions
            return
        try:
            grid = forward.grid
        except (AttributeError, LookupError, TypeError, ValueError):
            return  # a grid that cannot be told is an error for those alone who want one
        expected = None if grid is None else prod(grid)
        if expected is not None and length < expected:
            raise CaptureError(
                f"{' and '.join(path for _, path in blocks)} returned {length} tokens where the model's input has "
                f"{' x '.join(map(str, grid or ()))} = {expected}{_part(length, expected)}: {CAUSE}"
            )


def refuse_split(modules: Iterable[nn.Module]) -> None:
    """Refuse diffusers' context parallelism, wherever it splits the sequence.

    Args:
        modules: The model, and the blocks and embedders at whose inputs a sequence is split.

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


def refuse_sharded(state: Tensor, path: str) -> None:
    """Refuse hidden states (B, S, D) or (S, D) that are sharded over their tokens.

    Raises:
        CaptureError: They are a ``DTensor`` with tokens on several ranks.
    """
    distributed = sys.modules.get("torch.distributed.tensor")  # without it there are none
    if distributed is None or not isinstance(state, distributed.DTensor):
        return
    for axis, placement in enumerate(state.placements):
        # By attribute: a sharding over two axes of a mesh is no Shard of torch's, but has its dim.
        if getattr(placement, "dim", None) != state.ndim - 2 or state.device_mesh.size(axis) == 1:
            continue
        raise CaptureError(
            f"{path} returned a DTensor whose tokens are sharded over ranks ({state.placements}), {_SPLIT}"
        )


def _part(length: int, whole: int) -> str:
    """Return a clause for a length that sequence parallelism would explain; empty for others."""
    if not 0 < length < whole or whole % length:
        return ""
    return f" (exactly 1/{whole // length}, as on each of {whole // length} ranks that share a sequence)"
