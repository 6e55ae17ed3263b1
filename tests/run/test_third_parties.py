"""Other people's captures and regularizers in an unmodified program."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from layersync_core import CaptureError, ConfigError, LayerSyncConfig, Schedule, Term, hookimpl
from layersync_core.run import candidates
from layersync_core.session import plugins
from tests.fakes import Distribution
from tests.models import (
    Toy,
    assert_same_gradients,
    build,
    gradients,
    gradients_by_autograd,
    mean_cosine,
    randomise,
    toy_input,
    toy_states,
)
from tests.run.inside import WEIGHT, Launch, main_loss, sgd, train

OWN = "from tests.own_capture import OwnAdapter\nadapter = OwnAdapter()\n"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install an adapter with a capture of its own, for the toy model."""
    known = (candidates._known_names, candidates._is_known)
    for function in known:
        function.cache_clear()
    Distribution("somebodys-toy", OWN, {"own": "{module}:adapter"}).install(tmp_path, monkeypatch)
    yield
    for function in known:
        function.cache_clear()


def by_hand(model: Toy, x: Tensor) -> Tensor:
    states = toy_states(model, x)
    return main_loss(model(x)) - WEIGHT * mean_cosine(states[0], states[2], None)


def built() -> tuple[Any, Any, torch.optim.Optimizer]:
    model: Any = Toy()
    randomise(model)
    return model, copy.deepcopy(model), torch.optim.SGD(model.parameters(), lr=0)


@pytest.mark.usefixtures("own")
class TestCapture:
    def test_the_term_is_that_of_the_forward_behind_the_loss(self, launch: Launch) -> None:
        training = launch()
        model, untouched, optimiser = built()
        x, other = toy_input(), toy_input(seed=1)
        for _ in range(2):
            optimiser.zero_grad()
            unused = model(other)  # with gradients, for no loss
            output = model(x)
            with torch.no_grad():
                model(other)
            main_loss(output).backward()
            optimiser.step()
            assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, x), untouched))
            del unused
        assert (training.journal.status.steps, len(training.candidates.attached[0].attached_to.forwards)) == (2, 2)

    def test_of_several_forwards_in_one_loss_the_first_gets_it(
        self, launch: Launch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        launch()
        model, untouched, optimiser = built()
        x, other = toy_input(), toy_input(seed=1)
        (main_loss(model(x)) + main_loss(model(other))).backward()
        optimiser.step()
        expected = by_hand(untouched, x) + main_loss(untouched(other))
        assert_same_gradients(gradients(model), gradients_by_autograd(expected, untouched))
        assert "2 training forwards of Toy#1 are part of one loss" in capsys.readouterr().err

    def test_forwards_that_nobody_uses_are_bounded(self, launch: Launch) -> None:
        training = launch()
        model, _, optimiser = built()
        for _ in range(100):
            model(toy_input())
        gc.collect()
        assert len(training.candidates.attached[0].attached_to.forwards) <= 32
        main_loss(model(toy_input())).backward()
        optimiser.step()
        assert training.journal.status.steps == 1

    def test_a_program_without_an_optimiser_is_attached_at_its_first_forward(self, launch: Launch) -> None:
        training = launch(layersync_accumulation_steps=1)
        model: Any = Toy()
        randomise(model)
        untouched = copy.deepcopy(model)
        main_loss(model(toy_input())).backward()
        assert training.journal.status.terms == 1
        assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, toy_input()), untouched))


class Pulled:
    """A third party's regularizer with a warm-up of its own."""

    name, order = "pulled", 150

    def __init__(self, schedule: Schedule | None) -> None:
        if schedule is not None:
            self.schedule = schedule

    def layers(self, blocks: Sequence[Any]) -> set[int]:
        return {1}

    def compute(self, states: Any, step: int) -> Term:
        schedule = getattr(self, "schedule", Schedule())
        loss = states.trainable_tokens(1).square().mean() * schedule.factor(step)
        return Term(loss, {"pulled_loss": loss})


@pytest.fixture
def pulled(request: pytest.FixtureRequest) -> Iterator[None]:
    class Plugin:
        @hookimpl
        def layersync_regularizers(self, config: LayerSyncConfig) -> Sequence[Any]:
            return [Pulled(request.param)]

    plugins().manager.register(Plugin(), name="somebodys")
    yield
    plugins().manager.unregister(name="somebodys")


@pytest.mark.parametrize("pulled", [Schedule(warmup_steps=10)], indirect=True)
@pytest.mark.usefixtures("pulled")
def test_a_warm_up_of_its_own_that_nobody_counts_is_told(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    for _ in range(99):
        main_loss(model(**inputs)).backward()
    with pytest.raises(CaptureError, match="the schedule would stand still"):
        main_loss(model(**inputs)).backward()


@pytest.mark.parametrize("pulled", [Schedule(warmup_steps=10)], indirect=True)
@pytest.mark.usefixtures("pulled")
def test_a_warm_up_of_its_own_is_counted_by_the_optimiser(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    train(model, inputs, torch.optim.SGD(model.parameters(), lr=0), 3)
    assert training.steps.now == 3


@pytest.mark.parametrize("pulled", [None], indirect=True)
@pytest.mark.usefixtures("pulled")
def test_one_without_a_schedule_needs_no_steps(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    for _ in range(101):
        main_loss(model(**inputs)).backward()
    assert training.journal.status.terms == 101


def test_an_objective_is_refused_when_the_optimiser_is_made(launch: Launch) -> None:
    class Plugin:
        @hookimpl
        def layersync_objectives(self, config: LayerSyncConfig) -> Sequence[Any]:
            return [SimpleNamespace(name="other", compute=None)]

    plugins().manager.register(Plugin(), name="objective")
    try:
        launch()
        model, _ = build("dit")
        with pytest.raises(ConfigError, match=r"objective other replaces the main loss.* layersync run leave to the"):
            sgd(model)
    finally:
        plugins().manager.unregister(name="objective")
