"""What to write in an adapter that failed a check, according to measurements on its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from torch import nn

from layersync_core.capture.layout import BlockStack, ModelLayout
from layersync_core.families.adapter import nearest_layouts
from layersync_core.protocol import Adapter, Block
from layersync_core.testing.measure import Measured, Moved


@dataclass(frozen=True)
class Remedy:
    """The clauses that messages end with; each is empty if nothing better than the adapter was found.

    Attributes:
        adapter: The adapter that failed.
        blocks: The blocks that it lists.
        measured: What the model's modules returned.
        sample: Name of the noisy sample among the forward's arguments.
    """

    adapter: Adapter
    blocks: Sequence[Block]
    measured: Measured
    sample: str

    def stacks(self, paths: Sequence[str] = ()) -> str:
        """Return the ``stacks`` and the ``embedder`` to write, with the reason.

        Args:
            paths: Lists of blocks; if empty, those that the adapter lists.
        """
        paths = sorted(paths or {_list_of(block) for block in self.blocks}, key=self._when)
        found = {path: _best(self.measured.moved(f"{path}.0")) for path in paths}
        said = _said(self.adapter, self.measured.model)
        wrong = [path for path, moved in found.items() if not any(_same(moved, path, stack) for stack in said)]
        embedder = self._embedder([moved for moved in found.values() if moved], paths)
        if not (wrong or embedder or [stack.path for stack in said] != list(paths)):
            return ""
        fitting = [_stack(path, moved) for path, moved in found.items() if moved and moved.place != "scattered"]
        reasons = "; ".join(self._reason(path, found[path]) for path in wrong)
        if not fitting:
            return reasons
        fields = f"{written(fitting)}{embedder}"
        # Another kind of adapter has no such fields, but its author learns from them which tokens to provide.
        write = f"write {fields} in the adapter" if said else f"a BlockStackAdapter with {fields} takes the right ones"
        return f"{reasons}: {write}" if reasons else write

    def order(self, ran: list[int]) -> str:
        """Return what to write if the blocks did not run once each, in the listed order.

        Args:
            ran: Indices of blocks in the order in which they ran.
        """
        missing = [block for block in self.blocks if block.index not in ran]
        if missing:
            unused = ", ".join(sorted({_list_of(block) for block in missing}))
            return f"{missing[0]} does not run in a training forward: take {unused} out of stacks"
        if len(ran) > len(self.blocks):
            again = next(block for block in self.blocks if ran.count(block.index) > 1)
            return f"{again} runs more than once in a forward, which LayerSync cannot align: take it out of stacks"
        lists = list(dict.fromkeys(_list_of(self.blocks[index]) for index in ran))
        if ran != [block.index for path in lists for block in self.blocks if _list_of(block) == path]:
            return (
                "these lists take turns or run backwards, which no order of stacks can express: write an Adapter for "
                "the model (layersync_core.protocol) whose list_blocks() has the blocks in this order"
            )
        return f"stacks must have the lists in the order in which they run: {self.stacks()}"

    def depth(self, depth: int) -> str:
        """Return which lists of blocks make up a depth.

        Args:
            depth: How many blocks the model has.
        """
        lists = self.measured.lists()
        shown = ", ".join(f"{path} ({count})" for path, count in lists.items())
        choices = [
            chosen
            for size in range(1, len(lists) + 1)
            for chosen in combinations(lists, size)
            if sum(lists[path] for path in chosen) == depth
        ]
        advice = (self.stacks(choices[0]) if len(choices) == 1 else "") or "list in stacks those that are its blocks"
        return f"its lists of blocks, in the order in which they run, are {shown or 'unknown'}: {advice}"

    def width(self, width: int) -> str:
        """Return what to write as the ``width`` of blocks."""
        model = self.measured.model
        names = [name for name, value in vars(model).items() if value == width and type(value) is int]
        for path, module in model.named_children():
            sizes = ("out_features", "out_channels", "embedding_dim")
            names += [f"{path}.{size}" for size in sizes if getattr(module, size, None) == width]
        such = f', such as width="{names[0]}"' if names else ""
        return f"width must give the channels of a block's output{such}, or be left out"

    def _when(self, path: str) -> int:
        return self.measured.when(f"{path}.0")

    def _embedder(self, found: Sequence[Moved], paths: Sequence[str]) -> str:
        joined = [moved for moved in found if moved.place in ("first", "last")]
        layout = _layout(self.adapter, self.measured.model)
        if not joined or (layout is not None and layout.image_tokens is not None):
            return ""
        fitting = self.measured.embedders(joined[0].count, paths)
        if layout is not None and layout.embedder in fitting:
            return ""
        if fitting:
            return f', embedder="{fitting[0]}"'
        return f", embedder=… (the module that turns {self.sample} into {joined[0].count} tokens) or image_tokens=…"

    def _reason(self, path: str, moved: Moved | None) -> str:
        block = f"{path}.0"
        if moved is None:
            return f"nothing that {block} returns follows {self.sample}"
        what = block if moved.element is None else f"element {_quoted(moved.element)} of what {block} returns"
        if moved.place == "all":
            return f"{what} follows {self.sample}" if moved.element is not None else f"{block} returns its tokens alone"
        total, count = len(moved.follows), moved.count
        if moved.place == "scattered":
            return (
                f"{count} of {total} tokens in {what} follow {self.sample}, neither the first nor the last: write an "
                "Adapter for the model (layersync_core.protocol)"
            )
        what = f"{block} returns one sequence" if moved.element is None else f"{what} is one sequence"
        return f"{what} of text and image, of which the {moved.place} {count} of {total} tokens follow {self.sample}"


def written(stacks: Sequence[BlockStack]) -> str:
    """Return stacks as source code for an adapter."""
    items = []
    for stack in stacks:
        said = [] if stack.element is None else [f"element={_quoted(stack.element)}"]
        said += [] if stack.joined == "all" else [f"joined={_quoted(stack.joined)}"]
        said += [] if stack.batched else ["batched=False"]
        said += ["sequence_first=True"] if stack.sequence_first else []
        path = _quoted(stack.path)
        items.append(f"BlockStack({', '.join([path, *said])})" if said else path)
    return f"stacks={items[0]}" if len(items) == 1 else f"stacks=[{', '.join(items)}]"


def in_words(positions: Sequence[int], total: int) -> str:
    """Return token positions in words, such as 'the first 5 of 14 tokens'."""
    count = len(positions)
    if count == total:
        return f"all {total} tokens"
    if list(positions) == list(range(count)):
        return f"the first {count} of {total} tokens"
    if list(positions) == list(range(total - count, total)):
        return f"the last {count} of {total} tokens"
    return f"{count} of {total} tokens"


def _list_of(block: Block) -> str:
    return block.path.rpartition(".")[0]


def _quoted(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_quoted, value))})"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _best(found: Sequence[Moved]) -> Moved | None:
    """Return the tensor that most probably counts: all of it follows the sample, or one end of it."""
    likely = ("all", "first", "last", "scattered")
    usable = [moved for moved in found if moved.place in likely]
    return min(usable, key=lambda moved: (moved.place != "all", moved.place == "scattered"), default=None)


def _stack(path: str, moved: Moved) -> BlockStack:
    joined: Any = moved.place
    return BlockStack(
        path, element=moved.element, joined=joined, batched=moved.batched, sequence_first=moved.sequence_first
    )


def _same(moved: Moved | None, path: str, stack: BlockStack) -> bool:
    """Return whether an adapter's stack takes the measured tokens."""
    if moved is None or stack.path != path:
        return False
    if (stack.batched, stack.sequence_first) != (moved.batched, moved.sequence_first):
        return False
    # For a model that comes in two versions an adapter may set both element and joined; one of them has no effect.
    element = None if moved.element is None and stack.joined != "all" else stack.element
    element = element[0] if isinstance(element, tuple) and len(element) == 1 else element
    return element == moved.element and (moved.place == "all" or stack.joined == moved.place)


def _layout(adapter: Adapter, model: nn.Module) -> ModelLayout | None:
    return next(
        (layout for layout in nearest_layouts(getattr(adapter, "layouts", ()), model) if layout.fits(model)), None
    )


def _said(adapter: Adapter, model: nn.Module) -> list[BlockStack]:
    layout = _layout(adapter, model)
    return [] if layout is None else list(dict.fromkeys(stack for stack, _, _ in layout.blocks(model)))
