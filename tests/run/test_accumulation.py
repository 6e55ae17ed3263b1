"""Gradient accumulation: how a loss is divided is read from it, or told."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor

from layersync_core.errors import CaptureError
from layersync_core.run.accumulation import Factor, read_factor
from tests.models import assert_same_gradients, build, gradients, gradients_by_autograd
from tests.run.inside import Launch, by_hand, main_loss, micro_batches, sgd


@pytest.mark.parametrize("divide", ["loss / 4", "0.25 * loss", "(loss / 4).clone()", "loss / 2 / 2", "(loss + 0) / 4"])
def test_a_loss_divided_by_hand(launch: Launch, divide: str) -> None:
    launch()
    model, batches, expected = micro_batches()
    optimiser = sgd(model)
    for inputs in batches:
        eval(divide, {"loss": main_loss(model(**inputs))}).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


def test_losses_that_are_summed_without_division(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch()
    model, batches, expected = micro_batches()
    optimiser = sgd(model)
    for inputs in batches:
        main_loss(model(**inputs)).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), {name: 4 * grad for name, grad in expected.items()})
    assert "the gradients of 4 losses are summed without division" in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 4])
def test_accelerate_with_a_weighted_loss(launch: Launch, count: int) -> None:
    # DiffSynth-Studio multiplies each loss with a weight of its timestep.
    launch()
    model, batches, _ = micro_batches(count)
    untouched = copy.deepcopy(model)
    weights = [torch.tensor([0.1286 + 0.1 * number]) for number in range(count)]
    terms = [by_hand(untouched, inputs) - main_loss(untouched(**inputs)) for inputs in batches]
    losses = [weight * main_loss(untouched(**inputs)) for weight, inputs in zip(weights, batches, strict=True)]
    expected = gradients_by_autograd((sum(terms) + sum(losses)).sum() / count, untouched)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=count)
    prepared, optimiser = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0))
    for weight, inputs in zip(weights, batches, strict=True):
        with accelerator.accumulate(prepared):
            accelerator.backward(main_loss(prepared(**inputs)) * weight)
            optimiser.step()
    assert_same_gradients(gradients(model), expected)


def test_accelerate_with_a_weighted_loss_that_may_be_divided_is_asked_about(launch: Launch) -> None:
    launch()
    model, batches, _ = micro_batches(2)
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, optimiser = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0))
    for inputs in batches:
        accelerator.backward(main_loss(prepared(**inputs)) * 0.1286 / 2)
    with pytest.raises(CaptureError, match="--layersync_accumulation_steps N"):
        optimiser.step()


@pytest.mark.parametrize("loss_of", [lambda loss: loss * 0.5, lambda loss: loss / 3, lambda loss: loss * 1024])
def test_a_factor_that_is_no_accumulation_is_asked_about(launch: Launch, loss_of: Any) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = torch.optim.SGD(model.parameters(), lr=1)
    before = copy.deepcopy(model.state_dict())
    loss_of(main_loss(model(**inputs))).backward()
    with pytest.raises(CaptureError, match="--layersync_accumulation_steps N"):
        optimiser.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "before the step"


@pytest.mark.parametrize("factor", [2, 1, 0.25, -2])
def test_before_any_step_a_term_is_scaled_as_its_loss_is(launch: Launch, factor: float) -> None:
    launch()
    model, inputs = build("dit")
    expected = gradients_by_autograd(factor * by_hand(untouched := copy.deepcopy(model), inputs), untouched)
    (main_loss(model(**inputs)) * factor).backward()
    assert_same_gradients(gradients(model), expected)


def test_a_division_that_cannot_be_read_is_asked_about(launch: Launch) -> None:
    launch()
    model, batches, _ = micro_batches(2)
    optimiser = sgd(model)
    for inputs in batches:
        (main_loss(model(**inputs)) / torch.tensor(2.0, requires_grad=True)).backward()
    with pytest.raises(CaptureError, match="cannot be read from them"):
        optimiser.step()


@pytest.mark.parametrize("loss_of", [lambda loss: loss / 4, lambda loss: loss.exp().log() / 4])
def test_accumulation_steps_that_are_given(launch: Launch, loss_of: Any) -> None:
    launch(layersync_accumulation_steps=4)
    model, batches, expected = micro_batches()
    optimiser = sgd(model)
    for inputs in batches:
        loss_of(main_loss(model(**inputs))).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), expected, tolerance=1e-4)


def test_accumulation_steps_that_are_wrong_are_said(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch(layersync_accumulation_steps=4)
    model, inputs = build("dit")
    optimiser = sgd(model)
    main_loss(model(**inputs)).backward()
    optimiser.step()
    assert "layersync_accumulation_steps is 4, but the first optimiser step had 1 loss" in capsys.readouterr().err


def test_losses_that_are_summed_as_they_were_said_to_be(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch(layersync_accumulation_steps=1)
    model, batches, expected = micro_batches(2)
    optimiser = sgd(model)
    for inputs in batches:
        main_loss(model(**inputs)).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), {name: 2 * grad for name, grad in expected.items()})
    assert "warning" not in capsys.readouterr().err


def per_sample(model: Any, inputs: dict[str, Any]) -> Tensor:
    return model(**inputs).sample.square().flatten(1).mean(1)  # type: ignore[no-any-return]


def test_a_sum_over_as_many_samples_as_there_are_losses_is_asked_about(launch: Launch) -> None:
    launch()
    model, batches, _ = micro_batches(2)
    optimiser = sgd(model)
    for inputs in batches:
        (per_sample(model, inputs).sum() / 2).backward()  # a mean of two samples, or a half
    with pytest.raises(CaptureError, match="whether they are divided by 2 cannot be read"):
        optimiser.step()


@pytest.mark.parametrize("count", [1, 4])
def test_a_sum_divided_by_its_elements_is_a_mean(launch: Launch, count: int) -> None:
    launch()
    model, batches, expected = micro_batches(count)
    optimiser = sgd(model)
    for inputs in batches:
        (per_sample(model, inputs).sum() / 2 / count).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


def test_accelerate_is_believed_where_an_epoch_ends_before_a_step_is_full(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch()
    model, batches, expected = micro_batches(2)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    prepared, optimiser = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0))
    for inputs in batches:
        accelerator.backward(main_loss(prepared(**inputs)))
    optimiser.step()
    assert_same_gradients(gradients(model), {name: grad / 2 for name, grad in expected.items()})
    assert "summed" not in capsys.readouterr().err


@pytest.mark.parametrize("given", [None, 4])
def test_a_gradient_given_to_backward_is_a_factor_of_the_loss(launch: Launch, given: int | None) -> None:
    launch(**({} if given is None else {"layersync_accumulation_steps": given}))
    model, batches, expected = micro_batches()
    optimiser = sgd(model)
    for number, inputs in enumerate(batches):
        loss, share = main_loss(model(**inputs)), torch.tensor(0.25)
        loss.backward(gradient=share) if number % 2 else torch.autograd.backward([loss], [share])
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("given", [None, 2])
@pytest.mark.parametrize(
    "sign", ["-loss / 2", "loss / -2", "-0.5 * loss", "0 - loss / 2", "1 - loss / 2", "(0 - loss) / 2"]
)
def test_a_loss_that_is_maximised(launch: Launch, sign: str, given: int | None) -> None:
    launch(**({} if given is None else {"layersync_accumulation_steps": given}))
    model, batches, expected = micro_batches(2)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0, maximize=True)
    for inputs in batches:
        eval(sign, {"loss": main_loss(model(**inputs))}).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), {name: -grad for name, grad in expected.items()})


@pytest.mark.parametrize("way", ["plain", "accelerate", "given"])
def test_a_batch_that_is_left_out_gets_no_term(launch: Launch, way: str) -> None:
    launch(**({"layersync_accumulation_steps": 1} if way == "given" else {}))
    model, batches, _ = micro_batches(2)
    expected = gradients_by_autograd(by_hand(untouched := copy.deepcopy(model), batches[0]), untouched)
    optimiser = sgd(model)
    backward: Any = accelerate.Accelerator(cpu=True).backward if way == "accelerate" else torch.autograd.backward
    for share, inputs in zip((1, 0.0), batches, strict=True):
        backward(main_loss(model(**inputs)) * share)
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


def test_a_step_of_losses_that_are_left_out_shows_nothing(launch: Launch) -> None:
    launch()
    model, batches, expected = micro_batches(2)
    optimiser = sgd(model)
    for weight in (0, 0, 1, -1):
        for inputs in batches:
            (weight * main_loss(model(**inputs)) / 2).backward()
        optimiser.step()
        found = gradients(model)
        if weight:
            assert_same_gradients(found, {name: weight * grad for name, grad in expected.items()})
        else:
            assert not any(grad.any() for grad in found.values())


def test_a_factor_is_asked_about_at_the_first_step_that_shows_one(launch: Launch) -> None:
    launch()
    model, batches, _ = micro_batches(3)
    optimiser = sgd(model)
    for weight in (0, 1):
        for inputs in batches:
            (weight * main_loss(model(**inputs)) / 2).backward()
        if weight:
            with pytest.raises(CaptureError, match=r"the loss is multiplied by 0\.5, but 3 losses"):
                optimiser.step()
        else:
            optimiser.step()


@pytest.mark.parametrize(
    ("write", "value"),
    [
        (lambda loss: 0 - loss, -1),
        (lambda loss: torch.tensor(1.0) - loss / 2, -0.5),
        (lambda loss: loss / 2 - 1, 0.5),
        (lambda loss: 3 + loss / 4, 0.25),
        (lambda loss: torch.rsub(loss, 2, alpha=3), -3),
        (lambda loss: torch.rsub(torch.tensor(1.0), loss, alpha=3), 1),
        (lambda loss: torch.sub(torch.tensor(1.0), loss, alpha=2), -2),
        (lambda loss: torch.add(torch.tensor(1.0), loss, alpha=2), 2),
        (lambda loss: torch.add(loss, torch.tensor(1.0), alpha=2), 1),
    ],
)
def test_a_factor_is_read_through_sums_with_constants(write: Callable[[Tensor], Tensor], value: float) -> None:
    weight = torch.ones(3, requires_grad=True)
    loss = write(weight.mean())
    (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
    assert gradient[0] * 3 == pytest.approx(value), "as autograd has it"
    assert read_factor(loss) == Factor(value, certain=True)


@pytest.mark.parametrize(
    "write",
    [
        lambda loss: loss * torch.tensor(2.0, device="meta"),
        lambda loss: loss / torch.tensor(2.0, device="meta"),
        lambda loss: loss / 0.0,
    ],
)
def test_a_factor_that_cannot_be_read_is_not_certain(write: Callable[[Tensor], Tensor]) -> None:
    # Reading a number on a device would wait for it; meta stands for one here.
    weight = torch.ones(3, requires_grad=True, device="meta")
    assert read_factor(write(weight.mean() * 3)) == Factor(1, certain=False)


@pytest.mark.parametrize(
    ("write", "factor"),
    [
        (lambda one, other: one / 2 + other / 2, Factor(0.5, True)),
        (lambda one, other: (one + other) / 4, Factor(0.25, True)),
        (lambda one, other: (one / 2 + 0.5 * other) * 2, Factor(1, True)),
        (lambda one, other: one / 2 + other / 3, Factor(1, False)),
        (lambda one, other: (one / 2 + other / 3) / 4, Factor(0.25, False)),
        (lambda one, other: one - other, Factor(1, False)),
        (lambda one, other: one * other, Factor(1, False)),
        (lambda one, other: one / other, Factor(1, False)),
    ],
)
def test_a_factor_of_two_losses_is_what_they_share(write: Callable[[Tensor, Tensor], Tensor], factor: Factor) -> None:
    weight = torch.ones(3, requires_grad=True)
    assert read_factor(write(weight.mean(), weight.sum())) == factor


@pytest.mark.parametrize(("count", "certain"), [(10, True), (2000, False)])
def test_a_long_sum_is_not_read_to_its_end(count: int, certain: bool) -> None:
    weight = torch.ones(3, requires_grad=True)
    loss = weight.mean() / 1
    for _ in range(count):
        loss = loss + weight.mean()
    assert read_factor(loss) == Factor(1, certain)


def two_backwards(model: Any, inputs: dict[str, Any], share: float) -> None:
    sample = model(**inputs).sample
    first, second = sample[:1], sample[1:]
    (first.square().mean() * share).backward(retain_graph=True)
    (second.square().mean() * share).backward()


def test_two_backwards_through_one_forward_are_counted_as_two_losses_of_one_forward(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    two_backwards(model, inputs, 0.5)
    told = (
        "2 losses came before the first optimiser step, 1 of them a further backward through a forward that "
        "already had its term, .* multiplied by 0.5, .*layersync_accumulation_steps N, the number of forwards .*: 1 "
        "without"
    )
    with pytest.raises(CaptureError, match=told):
        optimiser.step()


def test_what_is_asked_for_gives_the_right_gradient(launch: Launch) -> None:
    launch(layersync_accumulation_steps=1)
    model, inputs = build("dit")
    expected = gradients_by_autograd(by_hand(untouched := copy.deepcopy(model), inputs), untouched)
    optimiser = sgd(model)
    two_backwards(model, inputs, 0.5)  # together the mean over both samples
    optimiser.step()
    assert_same_gradients(gradients(model), expected)
