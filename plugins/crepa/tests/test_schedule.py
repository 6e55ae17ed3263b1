"""Schedulers against their closed forms, and both modes of the cut-off by similarity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from layersync_core import ConfigError, LayerSyncConfig
from layersync_plugin_crepa.config import CrepaConfig
from layersync_plugin_crepa.cutoff import SimilarityCutoff
from layersync_plugin_crepa.schedule import WeightSchedule, schedule_of

BACKBONE = {"crepa_enabled": True, "crepa_block_index": 0, "crepa_feature_source": "backbone"}


def schedule(run_steps: Any = None, **more: Any) -> WeightSchedule:
    return schedule_of(
        LayerSyncConfig.from_mapping({**BACKBONE, **{f"crepa_{key}": value for key, value in more.items()}}).of(
            CrepaConfig
        ),
        run_steps,
    )


def test_the_default_is_constant() -> None:
    assert [schedule().at(step) for step in (0, 1, 10_000)] == [0.5, 0.5, 0.5]


CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "polynomial": lambda x: (1 - x) ** 2.5,
}


@pytest.mark.parametrize("end", [0.0, 0.2])
@pytest.mark.parametrize("known", ["decay_steps", "run"])
@pytest.mark.parametrize("kind", CURVES)
def test_a_decay_goes_from_the_end_of_the_warm_up_to_a_step(kind: str, known: str, end: float) -> None:
    given = {"scheduler": kind, "warmup_steps": 10, "lambda": 0.8, "lambda_end": end, "power": 2.5}
    made = schedule(50, **given) if known == "run" else schedule(decay_steps=50, **given)
    for step in range(10):
        assert made.at(step) == pytest.approx(0.8 * step / 10)
    for step in range(10, 50):
        assert made.at(step) == pytest.approx(end + (0.8 - end) * CURVES[kind]((step - 10) / 40))
    assert [made.at(step) for step in (50, 51, 1000)] == pytest.approx([end] * 3)
    assert made.active(49)
    assert made.active(50) == (end > 0), "nothing more to come stops the capture"


def test_a_cut_off_step() -> None:
    made = schedule(cutoff_step=7)
    assert [made.at(step) for step in (6, 7, 8)] == [0.5, 0, 0]
    assert (made.active(6), made.active(7)) == (True, False)


def test_a_decay_over_a_run_of_unknown_length_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"set crepa_decay_steps .* or max_train_steps"):
        schedule(scheduler="cosine")
    with pytest.raises(ConfigError, match=r"crepa_decay_steps is 5.* after crepa_warmup_steps 5"):
        schedule(scheduler="cosine", decay_steps=5, warmup_steps=5)
    with pytest.raises(ConfigError, match="the run ends at step 5"):
        schedule("5", scheduler="cosine", warmup_steps=5)


def means(similarities: list[float], decay: float) -> list[float]:
    found = [similarities[0]]
    for value in similarities[1:]:
        found.append(decay * found[-1] + (1 - decay) * value)
    return found


RISE_AND_FALL = [0.1, 0.5, 0.9, 0.9, 0.9, 0.2, 0.1, 0.9, 0.9]


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("permanent", [True, False])
def test_cut_off_by_similarity(permanent: bool, decay: float) -> None:
    cutoff = SimilarityCutoff(0.7, decay, permanent)
    passed = [mean >= 0.7 for mean in means(RISE_AND_FALL, decay)]
    assert passed[0] is False
    assert True in passed
    assert False in passed[passed.index(True) :]
    for index, value in enumerate(RISE_AND_FALL):
        expected = any(passed[: index + 1]) if permanent else passed[index]
        assert bool(cutoff(torch.tensor(value))) == expected
        torch.testing.assert_close(cutoff.ema, torch.tensor(means(RISE_AND_FALL, decay)[index]))
        assert cutoff.over == (permanent and expected), "only what is off for good may stop the capture"


def test_the_host_learns_of_it_a_fixed_number_of_losses_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layersync_plugin_crepa.cutoff._lag", lambda device: 3)  # as on an accelerator
    cutoff = SimilarityCutoff(0.7, 0.0, True)
    told = [(bool(cutoff(torch.tensor(value))), cutoff.over) for value in (0.1, 0.9, 0.1, 0.1, 0.1, 0.1)]
    assert [cut for cut, _ in told] == [False, True, True, True, True, True]
    assert [over for _, over in told] == [False, False, False, False, True, True]


def test_without_a_threshold_nothing_is_cut_off() -> None:
    cutoff = SimilarityCutoff(None, 0.0, True)
    assert not any(bool(cutoff(torch.tensor(1.0))) for _ in range(5))


def test_a_similarity_that_is_not_a_number_leaves_the_mean_alone() -> None:
    cutoff = SimilarityCutoff(0.7, 0.5, True)
    for value in (math.nan, 0.5, math.inf, 0.7):
        cutoff(torch.tensor(value))
    torch.testing.assert_close(cutoff.ema, torch.tensor(0.6))


def test_the_decision_is_saved() -> None:
    cutoff, other = SimilarityCutoff(0.7, 0.5, True), SimilarityCutoff(0.7, 0.5, True)
    cutoff(torch.tensor(0.9))
    other.load_state_dict(cutoff.state_dict())
    assert other.over
    assert bool(other(torch.tensor(0.0)))
    torch.testing.assert_close(other.ema, torch.tensor(0.45))
