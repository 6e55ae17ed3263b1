"""What discovery finds in a configuration of the kit without hints, compared with the adapter."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core.capture.discovery.discover import discover
from layersync_core.capture.discovery.found import Discovery
from layersync_core.capture.graph import SequenceFirst
from layersync_core.families.discovered import adapter_of
from layersync_core.testing import look
from tests.discovery.configurations import Configuration, configurations, folders

PAGE = Path(__file__).resolve().parents[2] / "docs" / "discovery.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
COLUMNS = ("blocks", "element", "tokens")


@dataclass(frozen=True)
class Row:
    """One configuration: what is wrong in each column, and what was found."""

    family: str
    name: str
    model: str
    wrong: dict[str, str]
    asked: str
    found: Discovery

    def cells(self) -> list[str]:
        if self.asked:
            return [f"`{self.family}`", self.name, f"`{self.model}`", f"ambiguous: {self.asked}", "", ""]
        lines = [line.split(": ", 1)[1] for line in self.found.lines()]
        told = [
            f"WRONG: {self.wrong[name]}" if name in self.wrong else line
            for name, line in zip(COLUMNS, lines, strict=True)
        ]
        return [f"`{self.family}`", self.name, f"`{self.model}`", *told]


def compare(configuration: Configuration) -> Row:
    """Return what discovery finds, and where it differs from the adapter."""
    model, inputs = configuration.build()
    found = discover(model, inputs, configuration.loss)
    own = configuration.kit.adapter
    row = Row(
        configuration.family, configuration.name, type(model).__name__, {}, "; ".join(map(str, found.questions)), found
    )
    if found.questions:
        return row
    adapter = adapter_of(found)
    blocks, expected = adapter.list_blocks(model), own.list_blocks(model)
    if [block.path for block in blocks] != [block.path for block in expected]:
        row.wrong["blocks"] = f"{[block.path for block in expected]} expected"
        return row
    for one, other in zip(blocks, expected, strict=True):
        same = [
            (block.stage == one.stage, theirs.stage == other.stage)
            for block, theirs in zip(blocks, expected, strict=True)
        ]
        if any(mine is not theirs for mine, theirs in same):
            row.wrong["blocks"] = f"stage of {one.path}"
        if one.width != other.width and other.width is not None:
            row.wrong["blocks"] = f"width of {one.path} is {other.width}"
    ours, theirs = _generated(adapter, model, inputs, found), _generated(own, model, inputs, None)
    for index, block in enumerate(blocks):
        if ours[index].shape[1:] != theirs[index].shape[1:]:
            row.wrong["element"] = f"{block}: {tuple(theirs[index].shape)} expected"
        elif len(ours[index]) != len(theirs[index]):
            row.wrong["tokens"] = f"{block}: {len(theirs[index])} expected, {len(ours[index])} found"
        elif not torch.equal(ours[index], theirs[index]):
            row.wrong["tokens"] = f"{block}: others expected"
    return row


def _generated(adapter: Any, model: nn.Module, inputs: dict[str, Any], found: Discovery | None) -> list[Tensor]:
    """Return (N, D) of each block: its generated tokens, of all samples."""
    seen = look(adapter, model, inputs)
    states = [seen.states[index] for index in sorted(seen.states)]
    if found is None:
        masks = [mask for mask in (seen.tokens.target, seen.tokens.real) if mask is not None]
        mask_BS = torch.stack([mask.expand(states[-1].shape[:2]) for mask in masks]).all(0) if masks else None
    else:
        mask_BS = torch.zeros(len(found.generated), found.stacks[-1].length, dtype=torch.bool)
        for sample, ranges in enumerate(found.generated):
            for start, stop in ranges:
                mask_BS[sample, start:stop] = True
        span = seen.tokens.spans[max(seen.states)]
        mask_BS = mask_BS[:, span.span if isinstance(span, SequenceFirst) else span]
    return [
        (state[mask_BS] if mask_BS is not None and mask_BS.shape == state.shape[:2] else state.flatten(0, 1)).detach()
        for state in states
    ]


def rows() -> list[Row]:
    return [compare(configuration) for folder in folders() for configuration in configurations(folder)]


def markdown(rows: list[Row]) -> str:
    head = ["family", "configuration", "class", *COLUMNS]
    table = [head, ["---"] * len(head), *(row.cells() for row in rows)]
    wrong, asked = sum(bool(row.wrong) for row in rows), sum(bool(row.asked) for row in rows)
    counted = f"{len(rows)} configurations: {len(rows) - wrong - asked} agree, {asked} ambiguous, {wrong} wrong."
    return "\n".join([counted, "", *(f"| {' | '.join(line)} |" for line in table)])
