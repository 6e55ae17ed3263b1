"""Where a layout has its blocks and tokens, in a few words of a table."""

from __future__ import annotations

from typing import Any

from layersync_core import BlockStack
from layersync_core.capture.layout import ModelLayout
from layersync_core.families.adapter import BlockStackAdapter


def in_words(adapter: Any, model: Any) -> str:
    """Return the lists of blocks that an adapter finds in a model, and which part of their outputs counts.

    Raises:
        AssertionError: The adapter isn't data, or has no layout for the model.
    """
    assert isinstance(adapter, BlockStackAdapter), "an adapter that isn't data needs its own words here"
    layout = next((layout for layout in adapter.layouts if layout.fits(model)), None)
    assert layout is not None, f"adapter {adapter.family} does not fit {type(model).__name__}"
    stacks = {stack.path: stack for stack, _, _ in layout.blocks(model)}
    told = {path: _stack(stack) for path, stack in stacks.items()}
    alike = [*dict.fromkeys(told.values())]
    paths = [f"`{path}`" for path in told]
    lists = (
        [f"{' and '.join(paths)}: {alike[0]}"] if len(alike) == 1 else [f"`{path}`: {it}" for path, it in told.items()]
    )
    return "; ".join([*lists, *_more(layout)])


def _stack(stack: BlockStack) -> str:
    tensor = "the tensor" if stack.element is None else f"element {stack.element}"
    beyond = f" beyond {stack.offset} more" if stack.offset else ""
    ends = {"first": "its first tokens", "last": "its last tokens"}
    axes = [] if stack.batched else ["(S, D)"]
    axes += ["(S, B, D)"] if stack.sequence_first else []
    if stack.joined == "all":
        return " ".join([tensor, *axes])
    # An element beside a joined sequence is what newer or older versions of the model return.
    either = "," if stack.element is None or stack.whole else " alone, or"
    return " ".join([f"{tensor}{either} {ends[stack.joined]}{beyond}", *axes])


def _more(layout: ModelLayout) -> list[str]:
    said = {
        "generated tokens by a mask": layout.target is not None,
        "real tokens by a mask": layout.real is not None,
        "generated tokens measured in every step": layout.measured,
    }
    return [text for text, holds in said.items() if holds]
