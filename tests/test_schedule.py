"""The weight over a run: linear warm-up, cosine decay, hard stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layersync_core import LayerSyncConfig
from layersync_core.losses.layersync import LayerSync
from layersync_core.schedule import Schedule

STEPS = st.integers(0, 300)


def test_without_settings_it_is_constant() -> None:
    assert [Schedule().factor(step) for step in (0, 1, 10**9)] == [1.0, 1.0, 1.0]
    assert Schedule().active(10**9)


def test_warm_up_is_linear_from_0() -> None:
    schedule = Schedule(warmup_steps=4)
    assert [schedule.factor(step) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert schedule.active(0)  # its weight is still to come


def test_decay_is_a_cosine_to_0() -> None:
    schedule = Schedule(decay_steps=4)
    assert [schedule.factor(step) for step in range(5)] == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0])
    assert schedule.active(3)
    assert not schedule.active(4)


def test_decay_follows_the_warm_up() -> None:
    schedule = Schedule(warmup_steps=2, decay_steps=2)
    assert [schedule.factor(step) for step in range(6)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])


def test_cutoff_is_hard() -> None:
    schedule = Schedule(cutoff_step=3)
    assert [schedule.factor(step) for step in range(5)] == [1, 1, 1, 0, 0]
    assert [schedule.active(step) for step in (2, 3)] == [True, False]


@pytest.mark.parametrize("schedule", [Schedule(warmup_steps=5, cutoff_step=3), Schedule(0, 9, 3), Schedule(2, 9, 3)])
def test_cutoff_within_another_phase(schedule: Schedule) -> None:
    assert schedule.factor(2) > 0
    assert schedule.factor(3) == 0
    assert not schedule.active(3)


@given(STEPS, STEPS, STEPS, STEPS)
def test_the_factor_is_a_fraction_that_rises_then_falls(warmup: int, decay: int, cutoff: int, step: int) -> None:
    schedule = Schedule(warmup, decay, cutoff)
    now, later = schedule.factor(step), schedule.factor(step + 1)
    assert 0 <= now <= 1
    if not schedule.active(step):
        assert now == later == 0
        assert not schedule.active(step + 1)
    elif step + 1 <= warmup and schedule.active(step + 1):
        assert later > now
    else:
        assert later <= now


@pytest.mark.parametrize(
    ("more", "varies"),
    [({}, False), *(({f"layersync_{name}": 1}, True) for name in ("warmup_steps", "decay_steps", "cutoff_step"))],
)
def test_whether_the_weight_depends_on_the_step(more: dict[str, int], varies: bool) -> None:
    config = LayerSyncConfig(layersync_enabled=True, layersync_student_block=1, **more)  # type: ignore[arg-type]
    assert config.has_schedule is varies
    assert (LayerSync(config).schedule is not None) is varies
