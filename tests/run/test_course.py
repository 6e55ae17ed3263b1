"""Trainings in one process, one after another or side by side: each has steps, checks and a share of its own."""

from __future__ import annotations

import copy
import gc
from types import MethodType
from typing import Any
from weakref import ref

import accelerate
import pytest
import torch
from torch import Tensor, nn

from layersync_core.errors import CaptureError
from layersync_core.run.status import summary
from tests.models import build
from tests.run.inside import Launch, by_hand, main_loss, sgd, train


def norm_of_term(model: nn.Module, inputs: dict[str, Any], loss: Tensor, scale: float = 1.0) -> float:
    """Train a loss, and return how much of the gradient is not the loss's own, relative to the term's by hand."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    untouched = copy.deepcopy(model)
    alone = torch.autograd.grad(
        by_hand(untouched, inputs) - main_loss(untouched(**inputs)),
        [parameter for parameter in untouched.parameters() if parameter.requires_grad],
        allow_unused=True,
    )
    own = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    model.zero_grad()
    loss.backward()
    rest = [
        weight.grad - (0 if gradient is None else gradient)
        for weight, gradient in zip(weights, own, strict=True)
        if weight.grad is not None
    ]
    wanted = [gradient for gradient in alone if gradient is not None]
    size = torch.cat([gradient.flatten() for gradient in wanted]).norm()
    return float(torch.cat([gradient.flatten() for gradient in rest]).norm() / size)


def shares(model: nn.Module, inputs: dict[str, Any], steps: int) -> list[float]:
    optimiser = sgd(model)
    found = []
    for _ in range(steps):
        found.append(norm_of_term(model, inputs, main_loss(model(**inputs))))
        optimiser.step()
    return found


@pytest.mark.parametrize(
    ("key", "expected"), [("layersync_cutoff_step", [1, 1, 0]), ("layersync_warmup_steps", [0, 0.5, 1])]
)
def test_a_second_training_has_a_schedule_of_its_own(launch: Launch, key: str, expected: list[float]) -> None:
    launch(**{key: 2})
    for _ in range(2):
        model, inputs = build("dit")
        assert shares(model, inputs, 3) == pytest.approx(expected, abs=1e-3)
        del model
        gc.collect()


def test_each_training_has_an_entry_in_the_last_line(launch: Launch) -> None:
    training = launch()
    for steps in (2, 3):
        model, inputs = build("dit")
        train(model, inputs, sgd(model), steps)
    training.journal.finish()
    line = summary([training.journal.status])
    assert "DiTTransformer2DModel#1: 2 steps with the term, similarity" in line
    assert "; DiTTransformer2DModel#2: 3 steps with the term, similarity" in line


def test_one_model_that_is_trained_anew_begins_anew(launch: Launch) -> None:
    training = launch(layersync_warmup_steps=2)
    model, inputs = build("dit")
    for _ in range(2):
        assert shares(model, inputs, 3) == pytest.approx([0, 0.5, 1], abs=1e-3)
    assert len(training.courses.all) == 2


@pytest.mark.parametrize("start", [0, 7])
def test_losses_of_an_optimiser_that_went_without_a_step_are_of_no_other(launch: Launch, start: int) -> None:
    training = launch(layersync_start_step=start)
    model, inputs = build("dit")
    for stepping in (False, True):
        optimiser = sgd(model)
        for _ in range(2):
            (main_loss(model(**inputs)) / 2).backward()
        if stepping:
            optimiser.step()
        del optimiser
    assert training.steps.now == start + 1
    assert training.courses.all[-1].terms == 2


def test_an_optimiser_that_comes_with_an_unfreeze_goes_on(launch: Launch) -> None:
    training = launch(layersync_warmup_steps=10)
    model, inputs = build("dit")
    first, *others = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimisers = [torch.optim.SGD(others, lr=0)]
    for number in range(4):
        if number == 2:
            optimisers.append(torch.optim.SGD([first], lr=0))
        main_loss(model(**inputs)).backward()
        for optimiser in optimisers:
            optimiser.step()
    assert (training.steps.now, training.journal.status.steps, training.journal.status.idle) == (4, 4, 0)


def test_two_optimisers_of_one_model_share_its_steps(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimisers = [torch.optim.SGD(weights[::2], lr=0), torch.optim.SGD(weights[1::2], lr=0)]
    for _ in range(5):
        main_loss(model(**inputs)).backward()
        for optimiser in optimisers:
            optimiser.step()
    status = training.journal.status
    assert (status.steps, status.idle, training.steps.now) == (5, 0, 5)
    optimisers[0].step()
    assert status.idle == 1, "a step without a loss"


def test_a_model_that_is_dropped_is_gone(launch: Launch) -> None:
    launch()
    gone = []
    for _ in range(2):
        model, inputs = build("dit")
        train(model, inputs, sgd(model))
        gone.append(ref(model))
        del model
        gc.collect()
    assert [model() for model in gone] == [None, None]


@pytest.mark.parametrize("weights", [(1, 1, 50, 0.01, -1, 0), (0.25, 1, 3)])
def test_a_factor_that_changes_later_is_a_weight_of_the_loss(launch: Launch, weights: tuple[float, ...]) -> None:
    launch(**({} if weights[0] == 1 else {"layersync_accumulation_steps": 1}))
    model, inputs = build("dit")
    optimiser = sgd(model)
    found = []
    for weight in weights:
        found.append(norm_of_term(model, inputs, main_loss(model(**inputs)) * weight))
        optimiser.step()
    assert found == pytest.approx([float(weight != 0) for weight in weights], abs=1e-3)


def test_losses_that_were_divided_keep_their_share(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    for weight in (1, 1, 8):
        for _ in range(4):
            share = norm_of_term(model, inputs, main_loss(model(**inputs)) * weight / 4)
            assert share == pytest.approx(0.25, abs=1e-3)
        optimiser.step()


# Steps that a scaler skips, and those of which torch's hook knows nothing.
@pytest.mark.parametrize(("count", "certain"), [(1, True), (1, False), (4, True)])
def test_a_step_that_the_scaler_skips_ends_its_losses(launch: Launch, count: int, certain: bool) -> None:
    training = launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for number in range(4):
        for _ in range(count):
            output = model(**inputs).sample
            loss = output.square().mean() if certain else output.square().mean() + 0.1 * output.abs().mean()
            scaler.scale(loss / count if count > 1 else loss).backward()
        if number < 2:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(torch.inf)  # type: ignore[union-attr]
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
    assert (training.journal.status.steps, training.steps.now) == (2, 2)


def plain_step(self: torch.optim.Optimizer, closure: Any = None) -> None:
    with torch.no_grad():
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter -= group["lr"] * parameter.grad


@pytest.mark.parametrize("how", ["plain", "scheduler before", "scheduler after", "calls the class's", "accelerate"])
def test_a_step_that_is_replaced_on_the_instance_counts_once(launch: Launch, how: str) -> None:
    training = launch(layersync_warmup_steps=3)
    model, inputs = build("dit")
    optimiser = sgd(model)
    if how == "scheduler before":
        torch.optim.lr_scheduler.ConstantLR(optimiser)
    if how == "calls the class's":
        optimiser.step = MethodType(lambda self, closure=None: type(self).step(self, closure), optimiser)  # type: ignore[method-assign]
    else:
        optimiser.step = MethodType(plain_step, optimiser)  # type: ignore[method-assign]
    backward: Any = accelerate.Accelerator(cpu=True).backward if how == "accelerate" else torch.autograd.backward
    for number in range(4):
        backward(main_loss(model(**inputs)))
        if how == "scheduler after" and not number:
            torch.optim.lr_scheduler.ConstantLR(optimiser)
        optimiser.step()
        optimiser.zero_grad()
    assert (training.steps.now, training.journal.status.steps) == (4, 4)


def test_a_replaced_step_is_checked_before_it_is_taken(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    optimiser.step = MethodType(plain_step, optimiser)  # type: ignore[method-assign]
    before = copy.deepcopy(model.state_dict())
    (main_loss(model(**inputs)) / 3).backward()
    with pytest.raises(CaptureError, match="the loss is multiplied by"):
        optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Models of one family in one loss.
def test_a_generator_behind_a_critic_of_its_family_gets_the_term(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = launch()
    (generator, inputs), (critic, _) = build("wan"), build("wan")
    optimisers = sgd(generator), sgd(critic)
    for _ in range(2):
        fake = generator(**inputs).sample
        loss = main_loss(critic(**{**inputs, "hidden_states": fake}))
        assert norm_of_term(generator, inputs, loss) == pytest.approx(1, abs=1e-3)
        optimisers[0].step()
        optimisers[1].zero_grad()
        main_loss(critic(**{**inputs, "hidden_states": fake.detach()})).backward()
        optimisers[1].step()
    said = capsys.readouterr().err
    assert said.count("is between WanTransformer3DModel#1 and the loss, and gets no term from this loss") == 1
    assert {course.steps for course in training.courses.all} == {2}
