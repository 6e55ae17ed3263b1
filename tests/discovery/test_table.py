"""Discovery, without hints, agrees with every adapter on every configuration, as ``docs/discovery.md`` says."""

from __future__ import annotations

import pytest

from tests.discovery.configurations import configuration, configurations, folders, names
from tests.discovery.table import BEGIN, END, PAGE, compare

TABLE = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()
AMBIGUOUS = 0.05


@pytest.mark.parametrize(("folder", "name"), names())
def test_it_agrees_with_the_adapter(folder: str, name: str) -> None:
    row = compare(configuration(folder, name))
    assert not row.wrong
    assert f"| {' | '.join(row.cells())} |" in TABLE, "write the page again: python -m tests.discovery --write"


def test_the_page_has_every_configuration_and_few_that_are_ambiguous() -> None:
    every = [f"| `{item.family}` | {item.name} |" for folder in folders() for item in configurations(folder)]
    listed = [line for line in TABLE if line.startswith("| `")]
    assert [line[: len(start)] for line, start in zip(listed, every, strict=True)] == every
    assert len(every) == len(names())
    ambiguous = sum("ambiguous: " in line for line in listed)
    assert ambiguous <= AMBIGUOUS * len(listed)
    (counted,) = [line for line in TABLE if " configurations: " in line]
    assert counted == (
        f"{len(listed)} configurations: {len(listed) - ambiguous} agree, {ambiguous} ambiguous, 0 wrong."
    )
    assert not any("WRONG" in line for line in listed)
