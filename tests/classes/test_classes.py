"""Every denoising class of diffusers is in the table of ``docs/classes.md``, and what the table says is true."""

from __future__ import annotations

import re

import diffusers
import pytest

from tests.classes import table
from tests.classes.finding import NO_DENOISERS, claimed, denoisers, look_into, modules
from tests.classes.table import BEGIN, END, PAGE, Row, markdown, proven
from tests.classes.tiny_models import ASKED, REFUSED, TINY

TABLE = PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip().splitlines()
ROWS = {line.split("`")[1]: line for line in TABLE if line.startswith("| `")}
REFUSED_AT_MOST = 0.1
WRITE = "write the page again: python -m tests.classes --write"


@pytest.mark.filterwarnings("ignore")  # what the models say of themselves
@pytest.mark.parametrize("kind", ROWS)
def test_what_a_row_says_is_so(kind: str) -> None:
    assert proven(kind).line() == ROWS[kind], WRITE


def test_every_class_of_diffusers_stands_in_a_row() -> None:
    assert {kind for kind, _ in denoisers()} == ROWS.keys(), WRITE


def test_what_is_left_out_is_there_and_has_a_reason() -> None:
    assert NO_DENOISERS.keys() <= {kind for module in modules() for kind in look_into(module).classes}
    assert all(NO_DENOISERS.values())
    assert not NO_DENOISERS.keys() & claimed().keys() - {"Transformer2DModel"}  # what old DiT and PixArt files name


def test_the_rows_are_counted_full_and_few_are_refused() -> None:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in ROWS.values()]
    assert all(len(row) == 3 and all(row) for row in cells)
    rows = [Row(kind.strip("`"), how, what) for kind, how, what in cells]
    assert markdown(rows).splitlines() == TABLE, WRITE
    refused = sum(row.how == "refused" for row in rows)
    assert refused <= REFUSED_AT_MOST * len(rows)
    ways = {re.sub(r" .*", "", row.how) for row in rows}
    assert ways == {"adapter", "discovered", "refused"}


def test_a_class_in_no_row_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(LookupError, match=rf"NewTransformer of diffusers {diffusers.__version__} stands in no row: "):
        proven("NewTransformer")


@pytest.mark.parametrize("kind", ["FluxTransformer2DModel"])
def test_an_adapter_without_a_configuration_of_the_kit_is_no_row(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "kits", dict)
    with pytest.raises(AssertionError, match="no configuration of the conformance kit has one"):
        proven(kind)


def test_tiny_models_go_when_an_adapter_comes() -> None:
    kept = {unknown.kind for unknown in TINY} | ASKED.keys() | REFUSED.keys()
    assert not kept & claimed().keys(), "these have an adapter: take them out of tests/classes/tiny_models.py"
