"""Stacks that mean a part of a list of blocks: each block once, in the order that they run in, and none beyond it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from layersync_core import BlockStack, BlockStackAdapter, ConfigError
from layersync_core.capture.layout import ModelLayout
from tests import fakes


def part(only: range | None, path: str = "blocks") -> BlockStack:
    return BlockStack(path, only=only)


def adapter(*stacks: BlockStack) -> BlockStackAdapter:
    return BlockStackAdapter(family="mine", model_classes="Mine", stacks=stacks)


def adapter_of_a_function(*stacks: BlockStack) -> BlockStackAdapter:
    return BlockStackAdapter(family="mine", model_classes="Mine", stacks=lambda model: stacks)


TWICE = [
    [part(range(4)), part(range(3, 6))],
    [part(range(3, 6)), part(range(3))],
    [part(range(2)), part(None)],
    [part(None), part(range(4, 6))],
    [part(None), part(None)],
    [part(range(2)), part(None, "others"), part(range(1, 4))],
]


@pytest.mark.parametrize("stacks", TWICE)
def test_a_block_that_would_count_twice_or_out_of_order(stacks: Sequence[BlockStack]) -> None:
    with pytest.raises(ConfigError, match="so that blocks would count twice or out of order"):
        adapter(*stacks)
    with pytest.raises(ConfigError, match="so that blocks would count twice or out of order"):
        ModelLayout(model_classes="Mine", stacks=stacks)
    model = fakes.model("Mine", blocks=fakes.blocks(6), others=fakes.blocks(2))
    with pytest.raises(ConfigError, match=r"give each part of the list once, in order, such as range\(0, 8\)"):
        adapter_of_a_function(*stacks).list_blocks(model)


@pytest.mark.parametrize("make", [adapter, adapter_of_a_function])
def test_a_part_beyond_the_list(make: type) -> None:
    model = fakes.model("Mine", blocks=fakes.blocks(6))
    for beyond in (range(7), range(4, 9), range(8, 9)):
        with pytest.raises(ConfigError, match=r"but the list has 6 blocks; valid are ranges up to range\(6\)"):
            make(part(beyond)).list_blocks(model)


@pytest.mark.parametrize("make", [adapter, adapter_of_a_function])
def test_parts_in_order(make: type) -> None:
    model = fakes.model("Mine", blocks=fakes.blocks(6), others=fakes.blocks(2))
    stacks = [part(range(2)), part(None, "others"), part(range(3, 6))]
    paths = [block.path for block in make(*stacks).list_blocks(model)]
    assert paths == ["blocks.0", "blocks.1", "others.0", "others.1", "blocks.3", "blocks.4", "blocks.5"]
