"""The benchmark of the effect: differences between arms, paired by seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.effect.paired import estimate, estimate_ratio, speed_up, speed_up_half_way, steps_to

losses = st.lists(st.floats(0.1, 10), min_size=2, max_size=12)


def curve(values: Sequence[float]) -> list[tuple[int, float]]:
    return [(10 * (place + 1), value) for place, value in enumerate(values)]


def test_an_interval_is_that_of_a_paired_t_test() -> None:
    from scipy.stats import ttest_1samp

    values = [0.31, 0.12, 0.25, -0.04, 0.2]
    found = estimate(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(np.mean(values))


def test_one_seed_says_nothing_of_the_spread() -> None:
    assert -1e9 in estimate([3.0])
    assert 1e-9 in estimate_ratio([3.0])
    assert estimate_ratio([3.0]).mean == pytest.approx(3)


def test_ratios_average_geometrically() -> None:
    found = estimate_ratio([0.5, 2.0])
    assert found.mean == pytest.approx(1)
    assert found.low == pytest.approx(1 / found.high)


def test_steps_lie_on_the_line_between_two_points() -> None:
    points = curve([4, 2, 3, 1])
    assert steps_to(points, 5) == 10
    assert steps_to(points, 3) == 15
    assert steps_to(points, 2) == 20
    assert steps_to(points, 1.5) == 37.5
    assert steps_to(points, 0.5) == float("inf")


def test_an_arm_that_learns_twice_as_fast() -> None:
    slow = curve([1 / step for step in range(1, 9)])
    fast = [(step / 2, loss) for step, loss in slow] + [(50, 0.1)]
    assert speed_up(slow, fast) == pytest.approx(2)
    assert speed_up(fast, slow) == pytest.approx(0.5)


def test_a_loss_that_rises_again_is_judged_by_its_best() -> None:
    assert speed_up(curve([3, 1, 2, 2.5]), curve([1, 2, 3, 4])) == 2


def test_the_pace_to_vanillas_loss_at_half_of_its_steps() -> None:
    vanilla = curve([8, 6, 4, 2])  # 6 at step 20 of 40
    assert speed_up_half_way(vanilla, curve([6, 5, 5, 5])) == 2
    assert speed_up_half_way(vanilla, curve([9, 8, 7, 5])) == pytest.approx(20 / 35)
    assert speed_up_half_way(vanilla, curve([9, 8, 8, 7])) == 0.5, "never there counts as there at the end"
    assert speed_up_half_way(vanilla, vanilla) == 1


@given(losses, losses)
def test_a_ratio_turns_round_with_its_sides(one: list[float], other: list[float]) -> None:
    there, back = speed_up(curve(one), curve(other)), speed_up(curve(other), curve(one))
    assert there == pytest.approx(1 / back)
    assert speed_up(curve(one), curve(one)) == 1
