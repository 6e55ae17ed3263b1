"""What counts as an optimiser step, and what the schedule makes of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from layersync_core.errors import CaptureError
from layersync_core.run.status import summary
from tests.models import assert_same_gradients, build, gradients, gradients_by_autograd
from tests.run.inside import Launch, by_hand, main_loss, micro_batches, sgd, train


@pytest.mark.parametrize("named", [True, False])
def test_a_step_whose_closure_trains_the_last_loss(launch: Launch, named: bool) -> None:
    training = launch()
    model, batches, expected = micro_batches(2)
    optimiser = sgd(model)

    def closure() -> Tensor:
        loss = main_loss(model(**batches[1])) / 2
        loss.backward()
        return loss

    (main_loss(model(**batches[0])) / 2).backward()
    returned = optimiser.step(closure=closure) if named else optimiser.step(closure)
    assert isinstance(returned, Tensor)
    assert_same_gradients(gradients(model), expected)
    assert (training.journal.status.terms, training.journal.status.steps) == (2, 1)


def test_a_closure_that_is_evaluated_often_is_one_step(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    expected = gradients_by_autograd(by_hand(untouched := copy.deepcopy(model), inputs), untouched)
    optimiser = torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad], lr=0, max_iter=3)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = main_loss(model(**inputs))
        loss.backward()
        return loss

    for _ in range(2):
        optimiser.step(closure)
    assert_same_gradients(gradients(model), expected)
    assert training.journal.status.terms > training.journal.status.steps == 2


def test_an_optimiser_of_another_model_may_step_first(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    other = nn.Linear(2, 1)
    expected = gradients_by_autograd(by_hand(untouched := copy.deepcopy(model), inputs), untouched)
    optimiser, others = sgd(model), torch.optim.SGD(other.parameters(), lr=0.1)
    for _ in range(2):
        other(torch.ones(2)).backward()
        others.step()
        optimiser.zero_grad()
        main_loss(model(**inputs)).backward()
        others.step()
        optimiser.step()
        assert_same_gradients(gradients(model), expected)
    assert (training.journal.status.terms, training.journal.status.steps, training.journal.status.idle) == (2, 2, 0)


def test_an_optimiser_that_was_given_other_tensors_later_still_counts(launch: Launch) -> None:
    # As DeepSpeed does, which puts flat copies in the place of the parameters.
    training = launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    optimiser.param_groups[0]["params"] = [torch.zeros(3, requires_grad=True)]
    main_loss(model(**inputs)).backward()
    optimiser.step()
    assert training.journal.status.steps == 1


def test_steps_without_a_term_are_counted(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    train(model, inputs, optimiser)
    for _ in range(2):
        for parameter, grad in zip(
            wanted := [p for p in model.parameters() if p.requires_grad],
            torch.autograd.grad(main_loss(model(**inputs)), wanted, allow_unused=True),
            strict=True,
        ):
            parameter.grad = grad
        optimiser.step()
    assert "1 of 3 steps with the term" in summary([training.journal.status])


def test_an_optimiser_that_steps_inside_backward(launch: Launch) -> None:
    training = launch(layersync_warmup_steps=10)
    model, inputs = build("dit")
    own = {p: torch.optim.SGD([p], lr=1e-3) for p in model.parameters()}
    seen: dict[str, Tensor] = {}
    names = {p: name for name, p in model.named_parameters()}

    def step(parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        seen[names[parameter]] = parameter.grad.clone()
        own[parameter].step()
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    for number in range(3):
        untouched = copy.deepcopy(model)
        term = by_hand(untouched, inputs) - main_loss(untouched(**inputs))
        expected = gradients_by_autograd(main_loss(untouched(**inputs)) + number / 10 * term, untouched)
        seen.clear()
        main_loss(model(**inputs)).backward()
        assert_same_gradients(seen, expected)
        assert training.steps.now == number + 1


def test_a_program_without_an_optimiser(launch: Launch) -> None:
    training = launch(layersync_warmup_steps=10, layersync_accumulation_steps=1)
    model, inputs = build("dit")
    for _ in range(3):
        main_loss(model(**inputs)).backward()
    assert (training.journal.status.terms, training.steps.now) == (3, 3)


def test_no_step_is_counted_twice_where_losses_are_counted_as_well(launch: Launch) -> None:
    training = launch(layersync_warmup_steps=10, layersync_accumulation_steps=2)
    model, batches, _ = micro_batches(2)
    optimiser = sgd(model)
    for number in range(3):
        for inputs in batches:
            (main_loss(model(**inputs)) / 2).backward()
        optimiser.step()
        assert training.steps.now == number + 1


@pytest.mark.parametrize(("given", "count"), [(1, 3), (4, 2), (2, 2)])
def test_the_first_step_shows_that_optimisers_count(
    launch: Launch, given: int, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    training = launch(layersync_warmup_steps=10, layersync_accumulation_steps=given, layersync_start_step=5)
    model, batches, _ = micro_batches(count)
    optimiser = sgd(model)
    for number in range(3):
        for inputs in batches:
            main_loss(model(**inputs)).backward()
        optimiser.step()
        assert training.steps.now == 5 + number + 1
    ahead = (
        f"{count} losses came before the first optimiser step, and layersync_accumulation_steps {given} counted them"
    )
    assert capsys.readouterr().err.count(ahead) == (1 if given < count else 0)


def test_losses_of_a_step_that_is_skipped_are_no_steps(launch: Launch) -> None:
    training = launch(layersync_cutoff_step=1, layersync_accumulation_steps=1)
    model, inputs = build("dit")
    optimiser, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=16.0)
    for number in range(2):
        scaler.scale(main_loss(model(**inputs))).backward()
        if not number:
            next(p.grad for p in model.parameters() if p.grad is not None).fill_(torch.inf)
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad()
        assert training.steps.now == number
    assert training.journal.status.terms == 2


def test_losses_of_a_skipped_step_are_no_part_of_the_next(launch: Launch) -> None:
    training = launch(layersync_warmup_steps=2, layersync_accumulation_steps=2)
    model, inputs = build("dit")
    optimiser, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=16.0)
    scaler.scale(main_loss(model(**inputs))).backward()
    next(p.grad for p in model.parameters() if p.grad is not None).fill_(torch.inf)
    scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad()
    scaler.scale(main_loss(model(**inputs)) / 2).backward()
    assert training.steps.now == 0  # for the second loss of the same step
    scaler.scale(main_loss(model(**inputs)) / 2).backward()
    scaler.step(optimiser)
    assert training.steps.now == 1


def test_a_schedule_that_nobody_counts_is_an_error(launch: Launch) -> None:
    launch(layersync_warmup_steps=10)
    model, inputs = build("dit")
    for _ in range(99):
        main_loss(model(**inputs)).backward()
    with pytest.raises(CaptureError, match="the schedule would stand still"):
        main_loss(model(**inputs)).backward()


def other_loss() -> Tensor:
    return torch.ones(3, requires_grad=True).sum()


@pytest.mark.parametrize("sign", ["an optimiser", "a model that is attached"])
def test_two_losses_without_a_term_before_the_first_step_are_an_error(launch: Launch, sign: str) -> None:
    training = launch()
    if sign == "an optimiser":
        sgd(nn.Linear(2, 2))
    else:
        model, _ = build("dit")
        training.prepare([model])
    other_loss().backward()
    with pytest.raises(CaptureError, match="two losses were trained without LayerSync's term"):
        other_loss().backward()


def test_losses_before_any_sign_of_a_training_are_left_alone(launch: Launch) -> None:
    launch()
    for _ in range(3):
        other_loss().backward()


def test_after_the_cut_off_nothing_is_captured(launch: Launch) -> None:
    training = launch(layersync_cutoff_step=2)
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    train(model, inputs, sgd(model), 4)
    assert_same_gradients(gradients(model), gradients_by_autograd(main_loss(untouched(**inputs)), untouched))
    assert (training.journal.status.terms, training.journal.status.steps) == (2, 2)
    assert not training.candidates.attached[0].attached_to.forwards


def test_a_run_that_starts_after_the_cut_off_is_no_error(launch: Launch) -> None:
    training = launch(layersync_cutoff_step=2, layersync_start_step=2)
    model, inputs = build("dit")
    train(model, inputs, sgd(model), 2)
    assert training.journal.status.over
    assert not training.journal.status.terms


def test_steps_without_a_term_are_said(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    train(model, inputs, optimiser)
    for _ in range(25):
        optimiser.zero_grad()
        next(model.parameters()).square().sum().backward()
        optimiser.step()
    assert capsys.readouterr().err.count("10 optimiser steps in a row had no term") == 1
