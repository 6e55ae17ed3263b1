"""Every training regime: right or refused, and as ``docs/regimes.md`` says."""

from __future__ import annotations

from functools import partial
from importlib import metadata

import pytest
import torch

from layersync_core import CaptureError
from tests.models import hooks_on
from tests.regimes import distributed, packages
from tests.regimes.cell import FAMILIES, KINDS, NO_DEVICE, WRONG, Cell, Outcome, Regime, run
from tests.regimes.eager import plain
from tests.regimes.page import ALONE, PAGE, read, run_alone

LISTED = read(PAGE.read_text())


def assert_listed(found: Outcome, name: str, family: str) -> None:
    """Compare with the page; what other libraries say of their own limits may change with their versions."""
    listed = LISTED[name][family]
    assert found.kind in KINDS, f"silently wrong, or an error of no use: {found.reason}"
    if listed == NO_DEVICE and torch.cuda.is_available():
        assert found.kind in ("right", "refused")
    elif found.kind == "not possible upstream":
        assert listed.kind == found.kind
    else:
        assert found == listed, "write the page again: python -m tests.regimes --write"


def test_the_page_lists_every_cell_and_no_other() -> None:
    assert set(LISTED) == {*ALONE, *distributed.REGIMES}
    assert {outcome.kind for row in LISTED.values() for outcome in row.values()} <= set(KINDS)
    assert all(outcome.reason for row in LISTED.values() for outcome in row.values() if outcome.kind == "refused")


def without_the_term(cell: Cell) -> None:
    cell.train()


def refused_too_late(cell: Cell) -> None:
    plain(cell)
    raise CaptureError("after the first step")


def failing_with_layersync_alone(cell: Cell) -> None:
    cell.attach()
    if hooks_on(cell.model):
        raise TypeError


@pytest.mark.parametrize("regime", [without_the_term, refused_too_late, failing_with_layersync_alone])
def test_what_the_page_does_not_know_is_seen(regime: Regime) -> None:
    assert run(partial(Cell, "sd3"), regime).kind == WRONG


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ALONE)
def test_one_process(name: str, family: str) -> None:
    for word, distribution in packages.DISTRIBUTIONS.items():
        if word in name and not [*metadata.distributions(name=distribution)]:
            pytest.skip(f"{distribution} is not installed")
    assert_listed(run_alone(name, family), name, family)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Outcome]]:
    return distributed.outcomes(tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", distributed.REGIMES)
def test_two_processes(name: str, family: str, two_processes: dict[str, dict[str, Outcome]]) -> None:
    assert_listed(two_processes[name][family], name, family)
