"""What follows from a gap, from depth to spare and from saturation, figure by figure."""

from __future__ import annotations

from itertools import product

import pytest

from layersync_core import Block, Findings, SkippedRun
from layersync_core.suggest.verdict import IDLE, SPARE

DEPTH, SAMPLES = 12, 1000


def findings(
    lead: float, centred: float = 0.5, rises: dict[tuple[int, int], float] | None = None, error: float = 0.01
) -> Findings:
    """Return figures of a model whose blocks from 7 on have better probes than those before."""
    blocks = [Block(index, f"blocks.{index}", "blocks", 8, "", DEPTH, False) for index in range(DEPTH)]
    found = Findings("Made", blocks, [0.5], forwards=16, samples=SAMPLES)
    for name, value in (("cka", 0.5), ("cosine", 0.5), ("centered_cosine", centred)):
        setattr(found, name, [[[value] * DEPTH] * DEPTH])
    probe = [0.5 + lead * (index >= 6) for index in range(DEPTH)]
    found.probe, found.gap = [probe], [[[two - one for two in probe] for one in probe]]
    found.gap_error = [[[error] * DEPTH] * DEPTH]
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
        # Nine pairs are compared, and the best of nine is 2.7 errors above zero by chance once in forty times.
        (findings(0.03, rises=every(0.03)), "yes", r"\+0.030 ± 0.010"),
        (
            findings(0.025, rises=every(0.03)),
            "no",
            r"\+0.025 ± 0.010 .* up to 0.028 \(2.8 standard errors\); compared were the 9 of 9",
        ),
        (findings(0.05, error=0.03, rises=every(0.03)), "no", "beyond chance"),
        (findings(0.1, error=0.05, rises=every(0.03)), "unknown", r"too few samples .* up to 0.139"),
    ],
    ids=[
        "all three",
        "no depth",
        "no gap",
        "saturated",
        "depth unknown",
        "just enough",
        "sure",
        "unsure",
        "vague",
        "too few",
    ],
)
def test_the_answer_needs_a_gap_depth_to_spare_and_something_to_learn(
    found: Findings, answer: str, reason: str
) -> None:
    content = found.content()
    assert content["verdict"]["answer"] == answer
    assert bool(content["recommended"]) == (answer == "yes")
    assert_matches(reason, content["verdict"]["reason"])


def test_a_loss_that_is_not_a_number_is_no_depth_to_spare() -> None:
    assert findings(0.1, rises=every(float("nan"))).content()["verdict"]["answer"] == "no"


def test_where_nothing_could_be_measured_the_cause_is_said() -> None:
    found = findings(0.1)
    found.cka = [[[None] * DEPTH] * DEPTH]
    verdict = found.content()["verdict"]
    assert verdict["answer"] == "unknown"
    assert_matches("nothing could be measured .*; of block .*: all compared tokens are equal", verdict["reason"])


def test_pairs_that_are_not_compared_are_counted() -> None:
    found = findings(0.0, rises=every(0.03))
    found.centered_cosine = [[[0.99 if teacher < 8 else 0.5 for teacher in range(DEPTH)] for _ in range(DEPTH)]]
    assert_matches("compared were the 3 of 9 allowed pairs", found.content()["verdict"]["reason"])


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


def test_if_all_take_too_much_the_pair_with_the_fewest_blocks_between_is_looked_at() -> None:
    found = findings(0.1, rises={pair: 0.5 for pair in every(0) if pair[1] - pair[0] > 2} | {(5, 7): 0.05})
    (pair,) = found.content()["recommended"]
    assert (pair["student"], pair["teacher"]) == (5, 7)
    assert found.content()["verdict"]["answer"] == "yes"


@pytest.mark.parametrize(
    ("rise", "stop", "said"),
    [
        (IDLE / 2, 1, "no need to stop"),
        (2 * IDLE, 1 / 3, "stop after 33% of the training, by rule of thumb (set layersync_cutoff_step"),
        (None, None, "when to stop was not measured"),
    ],
)
def test_blocks_that_do_something_are_given_back_by_stopping(rise: float | None, stop: float | None, said: str) -> None:
    found = findings(0.1, rises=None if rise is None else every(rise))
    pairs = found.content()["recommended"]
    assert {pair["stop"] for pair in pairs} == {stop}
    assert sum(line.strip().startswith(said) for line in found.lines()) == len(pairs) > 0


def assert_matches(pattern: str, text: str) -> None:
    import re

    assert re.search(pattern, text), text
