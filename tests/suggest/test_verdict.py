"""What follows from a gap, from depth to spare and from saturation, figure by figure."""

from __future__ import annotations

from itertools import product

import pytest

from layersync_core import Block, Findings, SkippedRun
from layersync_core.suggest.verdict import IDLE, SPARE

DEPTH, SAMPLES = 12, 1000


def findings(lead: float, centred: float = 0.5, rises: dict[tuple[int, int], float] | None = None) -> Findings:
    """Return figures of a model whose blocks from 7 on have better probes than those before."""
    blocks = [Block(index, f"blocks.{index}", "blocks", 8, "", DEPTH, False) for index in range(DEPTH)]
    found = Findings("Made", blocks, [0.5], forwards=16, samples=SAMPLES)
    for name, value in (("cka", 0.5), ("cosine", 0.5), ("centered_cosine", centred)):
        setattr(found, name, [[[value] * DEPTH] * DEPTH])
    probe = [0.5 + lead * (index >= 6) for index in range(DEPTH)]
    found.probe, found.gap = [probe], [[[two - one for two in probe] for one in probe]]
    if rises is not None:
        found.loss = 2.0
        found.between = [SkippedRun(student + 1, teacher, 2.0 * rise) for (student, teacher), rise in rises.items()]
    return found


def every(rise: float) -> dict[tuple[int, int], float]:
    return dict.fromkeys(product(range(1, DEPTH), range(2, DEPTH + 1)), rise)


@pytest.mark.parametrize(
    ("found", "answer", "reason"),
    [
        (findings(0.1, rises=every(0.03)), "yes", r"changes by \+3.0%, so there is depth to spare"),
        (findings(0.1, rises=every(0.3)), "no", r"no depth to spare.* the loss rises by 30.0% .* more than 10%"),
        (findings(0.0, rises=every(0.03)), "no", "no teacher separates the classes"),
        (findings(0.1, centred=0.99, rises=every(0.03)), "no", "saturated already"),
        (findings(0.1), "yes", "whether there is depth to spare was not measured"),
        (findings(0.1, rises=every(SPARE)), "yes", "depth to spare"),
    ],
    ids=["all three", "no depth", "no gap", "saturated", "depth unknown", "just enough"],
)
def test_the_answer_needs_a_gap_depth_to_spare_and_something_to_learn(
    found: Findings, answer: str, reason: str
) -> None:
    content = found.content()
    assert content["verdict"]["answer"] == answer
    assert bool(content["recommended"]) == (answer == "yes")
    assert_matches(reason, content["verdict"]["reason"])


def test_without_classes_only_the_depth_can_say_no() -> None:
    found = findings(0.1, rises=every(0.03))
    found.gap, found.probe = [], []
    assert found.content()["verdict"]["answer"] == "unknown"
    assert "depth to spare" in found.content()["verdict"]["reason"]
    found.between = findings(0.1, rises=every(0.3)).between
    assert found.content()["verdict"]["answer"] == "no"
    assert found.content()["recommended"] == []


def test_a_pair_whose_blocks_between_are_needed_is_left_out() -> None:
    chosen = [(pair["student"], pair["teacher"]) for pair in findings(0.1).content()["recommended"]]
    assert len(chosen) > 1
    first, *others = chosen
    content = findings(0.1, rises={first: 0.5, **dict.fromkeys(others, 0.05)}).content()
    assert [(pair["student"], pair["teacher"]) for pair in content["recommended"]] == others
    assert content["verdict"]["answer"] == "yes"


@pytest.mark.parametrize(("rise", "stop"), [(IDLE / 2, None), (2 * IDLE, 1 / 3), (None, None)])
def test_blocks_that_do_something_are_given_back_by_stopping(rise: float | None, stop: float | None) -> None:
    found = findings(0.1, rises=None if rise is None else every(rise))
    assert {pair["stop"] for pair in found.content()["recommended"]} == {stop}
    said = [line for line in found.lines() if "stop after 33% of the training (layersync_cutoff_step)" in line]
    assert bool(said) == (stop is not None)


def assert_matches(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text), text
