# Shapes: B batch, S tokens, D channels
"""``layersync run`` inside one process: which losses get the term, how it is scaled, and what is refused."""

from __future__ import annotations

import copy
import gc
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn
from torch.optim import optimizer as optimizers
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from layersync_core import LayerSyncConfig, Term
from layersync_core.errors import CaptureError, ConfigError, LayerSyncError, UnsupportedFamilyError
from layersync_core.families.registry import load_tiny
from layersync_core.losses.hookspecs import hookimpl
from layersync_core.run import patches
from layersync_core.run.accumulation import Factor, read_factor
from layersync_core.run.settings import VARIABLE
from layersync_core.run.status import summary
from layersync_core.run.training import Training
from layersync_core.session import plugins
from tests.curves import read_curves
from tests.fakes import model as fake_model
from tests.models import (
    assert_same_gradients,
    build,
    generated,
    gradients,
    gradients_by_autograd,
    mean_cosine,
    settings,
    states_by_hand,
)

WEIGHT = 0.5
PLACES = [
    (nn.Module, "__init__"),
    (nn.Module, "__setstate__"),
    (torch, "compile"),
    (torch.optim.Optimizer, "__init__"),
    (torch.autograd, "backward"),
    (torch.amp.GradScaler, "scale"),
    (accelerate.Accelerator, "__init__"),
    (accelerate.Accelerator, "prepare"),
    (accelerate.Accelerator, "backward"),
    (accelerate.Accelerator, "log"),
    (accelerate.data_loader.DataLoaderShard, "__iter__"),
    (DataLoader, "__iter__"),
    (SummaryWriter, "add_scalar"),
]
Launch = Callable[..., Training]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Launch]:
    """Switch ``layersync run`` on in this process as the start-up hook does; everything is undone afterwards."""
    for owner, name in PLACES:
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr("sys.excepthook", print)
    hooks = dict(optimizers._global_optimizer_pre_hooks)

    def launch(**more: Any) -> Training:
        given = {**settings(1, 3, WEIGHT), "layersync_status_dir": str(tmp_path), **more}
        monkeypatch.setenv(VARIABLE, json.dumps(given))
        patches._installed.clear()
        patches.training.cache_clear()
        patches.install("torch")
        patches.install("accelerate")
        return patches.training()

    yield launch
    patches._installed.clear()
    patches.training.cache_clear()
    optimizers._global_optimizer_pre_hooks.clear()
    optimizers._global_optimizer_pre_hooks.update(hooks)
    for state in (AcceleratorState, GradientState):
        state._reset_state()


def main_loss(output: Any) -> Tensor:
    return getattr(output, "sample", output).square().mean()


def by_hand(model: nn.Module, inputs: dict[str, Any], pair: tuple[int, int] = (0, 2)) -> Tensor:
    """Return main loss plus term, from a forward in which no hook takes part."""
    states = states_by_hand(model, inputs)
    term = -WEIGHT * mean_cosine(states[pair[0]], states[pair[1]], generated(inputs))
    return main_loss(model(**inputs)) + term


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0)


@pytest.mark.parametrize("case", ["dit", "flux", "flux references", "wan", "wan vace"])
def test_an_untouched_loop_trains_the_loss_plus_the_term(launch: Launch, case: str) -> None:
    training = launch()
    model, inputs = build(case)
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    loss = main_loss(model(**inputs))
    plain = loss.detach().clone()
    loss.backward()
    assert torch.equal(loss.detach(), plain), "the script's own loss is left as it is"
    found = {name: grad.clone() for name, grad in gradients(model).items()}
    optimiser.step()
    assert_same_gradients(found, gradients_by_autograd(by_hand(untouched, inputs), untouched))
    assert (training.status.terms, training.status.steps) == (1, 1)
    assert "student block 1 of" in training.status.targets[0]


def test_the_term_is_added_at_every_step(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        expected = gradients_by_autograd(by_hand(untouched := copy.deepcopy(model), inputs), untouched)
        optimiser.zero_grad()
        main_loss(model(**inputs)).backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert_same_gradients(grads, expected)
        optimiser.step()
    assert training.status.steps == 3


# Gradient accumulation.


def micro_batches(count: int = 4) -> tuple[nn.Module, list[dict[str, Any]], dict[str, Tensor]]:
    """Return a model, batches for it, and the gradients of the mean of loss plus term over them."""
    model, first = build("dit")
    tiny = load_tiny("dit")
    batches = [first, *(tiny.example_inputs(model, 2) for _ in range(count - 1))]
    untouched = copy.deepcopy(model)
    mean = sum(by_hand(untouched, inputs) for inputs in batches) / count
    return model, batches, gradients_by_autograd(mean, untouched)


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


def test_grad_scaler(launch: Launch) -> None:
    launch()
    model, batches, expected = micro_batches()
    optimiser, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=512.0)
    for inputs in batches:
        scaler.scale(main_loss(model(**inputs)) / 4).backward()
    scaler.unscale_(optimiser)
    scaler.step(optimiser)
    assert_same_gradients(gradients(model), expected)


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
    assert (training.status.terms, training.status.steps) == (2, 1)


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
    assert training.status.terms > training.status.steps == 2


@pytest.mark.parametrize("divides", ["accelerate", "script"])
def test_accelerate(launch: Launch, divides: str) -> None:
    training = launch()
    model, batches, expected = micro_batches()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4 if divides == "accelerate" else 1)
    prepared, optimiser = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0))
    for number, inputs in enumerate(batches):
        with accelerator.accumulate(prepared):
            loss = main_loss(prepared(**inputs))
            accelerator.backward(loss if divides == "accelerate" else loss / 4)
            if divides == "accelerate" or number == 3:
                optimiser.step()
    assert_same_gradients(gradients(model), expected)
    assert (training.status.terms, training.status.steps) == (4, 1)


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


# Scripts that call backward otherwise.


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
    assert (training.status.terms, training.status.steps, training.status.idle) == (2, 2, 0)


def test_an_optimiser_that_was_given_other_tensors_later_still_counts(launch: Launch) -> None:
    # As DeepSpeed does, which puts flat copies in the place of the parameters.
    training = launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    optimiser.param_groups[0]["params"] = [torch.zeros(3, requires_grad=True)]
    main_loss(model(**inputs)).backward()
    optimiser.step()
    assert training.status.steps == 1


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
    assert "1 of 3 steps with the term" in summary([training.status])


def test_an_error_that_the_program_catches_is_said_at_once_and_raised_again(
    launch: Launch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    for _ in range(3):
        (main_loss(model(**inputs)) / 3).backward()
        with pytest.raises(CaptureError, match="the loss is multiplied with"):
            optimiser.step()
    assert capsys.readouterr().err.count("layersync: error: the loss is multiplied with") == 1


def test_a_dummy_leaf_beside_the_loss_is_left_alone(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    main_loss(model(**inputs)).backward()
    (torch.zeros((), requires_grad=True) / 1).backward()
    torch.zeros((), requires_grad=True).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))
    assert training.status.terms == 1


def test_a_loss_that_is_detached_is_refused(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    main_loss(model(**inputs)).detach().requires_grad_().backward()
    with pytest.raises(CaptureError, match="a training forward ran, but no loss depends on it"):
        optimiser.step()


@pytest.mark.parametrize("factors", [(None, None), (0.25, 0.75), (0.5, None), (None, 0.5), (0.0, 1.0)])
def test_a_second_backward_through_one_loss_counts_its_term_again(
    launch: Launch, factors: Sequence[float | None]
) -> None:
    launch()
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    loss = main_loss(model(**inputs))
    for factor in factors:
        loss.backward(None if factor is None else torch.tensor(factor), retain_graph=True)
    count = sum(1 if factor is None else factor for factor in factors)
    expected = gradients_by_autograd(count * by_hand(untouched, inputs), untouched)
    assert_same_gradients(gradients(model), expected)


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


def test_two_losses_of_one_forward_get_one_term(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    output = model(**inputs).sample
    output.square().mean().backward(retain_graph=True)
    output.abs().mean().backward()
    optimiser.step()
    expected = by_hand(untouched, inputs) + untouched(**inputs).sample.abs().mean()
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, untouched))


def test_a_backward_inside_the_loss_function(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    accelerator = accelerate.Accelerator(cpu=True)
    optimiser = sgd(model)

    def loss_function() -> Tensor:
        accelerator.backward(main_loss(model(**inputs)))
        return torch.zeros((), requires_grad=True)

    accelerator.backward(loss_function())
    optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))


def test_a_loss_that_is_no_scalar_is_refused(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    sgd(model)
    output = model(**inputs).sample
    with pytest.raises(CaptureError, match="call it on a scalar"):
        output.backward(torch.ones_like(output))


def test_a_loss_of_one_element_is_a_loss(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    main_loss(model(**inputs)).reshape(1).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))


def test_backward_under_no_grad(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    loss = main_loss(model(**inputs))
    with torch.no_grad():
        loss.backward()
    optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))


def test_gradients_by_autograd_grad_are_refused(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    parameters = list(model.parameters())
    grads = torch.autograd.grad(main_loss(model(**inputs)), parameters, allow_unused=True)
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad
    with pytest.raises(CaptureError, match=r"torch\.autograd\.grad or torch\.func do not pass through a loss"):
        optimiser.step()


def test_torch_func_is_refused(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return main_loss(torch.func.functional_call(model, parameters, kwargs=inputs))

    for name, grad in torch.func.grad(loss)(parameters).items():
        parameters[name].grad = grad
    with pytest.raises(CaptureError, match=r"the last forward ran under torch\.func"):
        optimiser.step()


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
        assert training.step == number + 1


def test_a_program_without_an_optimiser(launch: Launch) -> None:
    training = launch(layersync_warmup_steps=10, layersync_accumulation_steps=1)
    model, inputs = build("dit")
    for _ in range(3):
        main_loss(model(**inputs)).backward()
    assert (training.status.terms, training.step) == (3, 3)


def test_a_schedule_that_nobody_counts_is_an_error(launch: Launch) -> None:
    launch(layersync_warmup_steps=10)
    model, inputs = build("dit")
    for _ in range(99):
        main_loss(model(**inputs)).backward()
    with pytest.raises(CaptureError, match="the schedule would stand still"):
        main_loss(model(**inputs)).backward()


# Several forwards.


def test_the_first_of_several_forwards_in_one_loss(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch()
    model, inputs = build("dit")
    other = load_tiny("dit").example_inputs(model, 2)
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    for _ in range(2):
        model.zero_grad()
        (main_loss(model(**inputs)) + main_loss(model(**other))).backward()
        optimiser.step()
    expected = by_hand(untouched, inputs) + main_loss(untouched(**other))
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, untouched))
    assert capsys.readouterr().err.count("2 training forwards of DiTTransformer2DModel#1 are part of one loss") == 1


def test_two_forwards_before_two_losses(launch: Launch) -> None:
    launch()
    model, batches, expected = micro_batches(2)
    optimiser = sgd(model)
    losses = [main_loss(model(**inputs)) for inputs in batches]
    for loss in losses:
        (loss / 2).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


def test_a_forward_without_the_trained_weights_between_forward_and_loss(launch: Launch) -> None:
    # Preservation passes run the model without its LoRA weights, with gradients switched on.
    launch()
    model, inputs = build("dit")
    model.requires_grad_(False)
    trained = model.transformer_blocks[0]
    trained.requires_grad_(True)
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    prediction = model(**inputs).sample
    trained.requires_grad_(False)
    with torch.enable_grad():
        target = model(**inputs).sample
    trained.requires_grad_(True)
    (prediction.square().mean() + 0 * target.mean()).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))


def test_validation_and_an_ema_copy_are_left_alone(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    ema = copy.deepcopy(model)
    output = model(**inputs).sample
    with torch.no_grad():
        ema(**inputs)
        model(**inputs)
    ema(**inputs)  # with gradients, and dropped
    output.square().mean().backward()
    optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))
    assert len(training.status.targets) == 1


def test_forwards_that_nobody_uses_keep_no_memory(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    sgd(model)
    capture = training.candidates.attached[0].capture
    for _ in range(20):
        model(**inputs)
    gc.collect()
    model(**inputs)
    assert not capture.passes
    output = model(**inputs)
    assert len(capture.passes) == 1
    del output
    assert not capture.passes


def test_a_frozen_model_leaves_no_forward_behind(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    sgd(model)
    model.requires_grad_(False)
    outputs = [model(**inputs) for _ in range(20)]
    capture = training.candidates.attached[0].capture
    assert not capture.passes
    assert len(outputs) == 20


# Which model.


def test_experts_of_one_family_are_all_targets(launch: Launch) -> None:
    training = launch()
    (first, inputs), (second, _) = build("dit"), build("dit")
    untouched = copy.deepcopy(second)
    optimiser = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0)
    for model in (first, second):
        main_loss(model(**inputs)).backward()
        optimiser.step()
    assert_same_gradients(gradients(second), gradients_by_autograd(by_hand(untouched, inputs), untouched))
    assert [line.split(" ")[0] for line in training.status.targets] == [
        "DiTTransformer2DModel#1",
        "DiTTransformer2DModel#2",
    ]


def test_models_of_two_families_in_one_loss_are_ambiguous(launch: Launch) -> None:
    launch()
    (dit, dit_inputs), (wan, wan_inputs) = build("dit"), build("wan")
    torch.optim.SGD([*dit.parameters(), *wan.parameters()], lr=0)
    with pytest.raises(ConfigError, match=r"DiTTransformer2DModel#1 \(dit\), WanTransformer3DModel#1 \(wan\)") as error:
        (main_loss(dit(**dit_inputs)) + main_loss(wan(**wan_inputs))).backward()
    assert "--layersync_target" in str(error.value)


@pytest.mark.parametrize("target", ["WanTransformer3DModel", "WanTransformer3DModel#1"])
def test_a_named_target_is_the_only_one(launch: Launch, target: str) -> None:
    training = launch(layersync_target=target)
    (dit, dit_inputs), (wan, wan_inputs) = build("dit"), build("wan")
    untouched = copy.deepcopy(wan)
    optimiser = torch.optim.SGD([*dit.parameters(), *wan.parameters()], lr=0)
    (main_loss(dit(**dit_inputs)) + main_loss(wan(**wan_inputs))).backward()
    optimiser.step()
    assert_same_gradients(gradients(wan), gradients_by_autograd(by_hand(untouched, wan_inputs), untouched))
    assert len(training.status.targets) == 1


def test_a_target_that_is_not_there(launch: Launch) -> None:
    launch(layersync_target="FluxTransformer2DModel")
    model, inputs = build("dit")
    optimiser = sgd(model)
    main_loss(model(**inputs)).backward()
    with pytest.raises(CaptureError, match="DiTTransformer2DModel#1: not layersync_target FluxTransformer2DModel"):
        optimiser.step()


def test_a_model_of_no_family_is_named(launch: Launch) -> None:
    launch()
    model = nn.Sequential(nn.Linear(3, 30))
    optimiser = sgd(model)
    model(torch.randn(2, 3)).mean().backward()
    with pytest.raises(CaptureError, match=r"no model of a known family was built; models of this program: .*Seq"):
        optimiser.step()


def test_a_refused_family_is_refused_when_the_optimiser_is_made(launch: Launch) -> None:
    launch()
    model = fake_model("Lumina2Transformer2DModel", weights=nn.Linear(2, 2))
    with pytest.raises(UnsupportedFamilyError, match="Lumina 2"):
        sgd(model)


def test_a_refused_model_beside_the_trained_one_is_no_error(launch: Launch) -> None:
    launch()
    fake = fake_model("Lumina2Transformer2DModel", weights=nn.Linear(2, 2))
    model, inputs = build("dit")
    optimiser = sgd(model)
    main_loss(model(**inputs)).backward()
    optimiser.step()
    assert fake is not None


def test_a_block_deeper_than_the_model_is_refused_when_the_optimiser_is_made(launch: Launch) -> None:
    training = launch(layersync_teacher_block=99)
    model, _ = build("dit")
    with pytest.raises(ConfigError, match="LayerSync could not find layer 99"):
        sgd(model)
    assert "could not find layer 99" in training.status.error


def test_a_model_that_is_built_and_used_without_any_sign_before_its_forward(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    main_loss(model(**inputs)).backward()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))


def test_an_optimiser_that_is_made_after_the_forward(launch: Launch) -> None:
    launch()
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    loss = main_loss(model(**inputs))
    optimiser = sgd(model)
    loss.backward()
    optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))


def test_a_program_that_calls_the_blocks_itself(launch: Launch) -> None:
    launch()
    model, inputs = build("wan")
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    state = states_by_hand(model, inputs)[-1]
    for _ in range(3):
        states_by_hand(model, inputs)  # dropped
    state.square().mean().backward()
    optimiser.step()
    states = states_by_hand(untouched, inputs)
    expected = states[-1].square().mean() - WEIGHT * mean_cosine(states[0], states[2])
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, untouched))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(launch: Launch, reentrant: bool) -> None:
    launch()
    model, inputs = build("wan")
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    model.enable_gradient_checkpointing(
        lambda function, *arguments: checkpoint(function, *arguments, use_reentrant=reentrant)
    )
    for _ in range(2):
        model.zero_grad()
        main_loss(model(**inputs)).backward()
        optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))


@pytest.mark.parametrize("how", ["torch.compile", "module.compile", "before the optimiser", "after validation"])
def test_compiled(launch: Launch, how: str) -> None:
    torch._dynamo.reset()
    training = launch()
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    optimiser = None if how == "before the optimiser" else sgd(model)
    called: Any = model
    if how == "module.compile":
        model.compile(fullgraph=True, backend="aot_eager")
    else:
        called = torch.compile(model, fullgraph=True, backend="aot_eager")
    if how == "after validation":
        with torch.no_grad():
            called(**inputs)
    optimiser = optimiser or sgd(model)
    for _ in range(3):
        model.zero_grad()
        main_loss(called(**inputs)).backward()
        optimiser.step()
    expected = by_hand(untouched, inputs)
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, untouched))
    assert training.status.terms == 3


# Steps, schedules and checkpoints.


def train(model: nn.Module, inputs: dict[str, Any], optimiser: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimiser.zero_grad()
        main_loss(model(**inputs)).backward()
        optimiser.step()


def test_after_the_cut_off_nothing_is_captured(launch: Launch) -> None:
    training = launch(layersync_cutoff_step=2)
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    train(model, inputs, sgd(model), 4)
    assert_same_gradients(gradients(model), gradients_by_autograd(main_loss(untouched(**inputs)), untouched))
    assert (training.status.terms, training.status.steps) == (2, 2)
    assert not training.candidates.attached[0].capture.passes


def test_a_run_that_starts_after_the_cut_off_is_no_error(launch: Launch) -> None:
    training = launch(layersync_cutoff_step=2, layersync_start_step=2)
    model, inputs = build("dit")
    train(model, inputs, sgd(model), 2)
    assert training.status.over
    assert not training.status.terms


def test_the_schedule_goes_on_from_accelerates_checkpoint(launch: Launch, tmp_path: Path) -> None:
    training = launch(layersync_warmup_steps=10)
    model, inputs = build("dit")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimiser = accelerator.prepare(model, sgd(model))
    train(model, inputs, optimiser, 3)
    accelerator.save_state(str(tmp_path / "checkpoint"))
    train(model, inputs, optimiser, 2)
    assert training.step == 5
    accelerator.load_state(str(tmp_path / "checkpoint"))
    assert training.step == 3


def test_a_checkpoint_without_our_state(launch: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = launch()
    model, _ = build("dit")
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.prepare(model, sgd(model))
    folder = tmp_path / "checkpoint"
    accelerator.save_state(str(folder))
    (folder / "layersync_state.safetensors").unlink()
    accelerator.load_state(str(folder))
    assert "the checkpoint has no layersync_state.safetensors" in capsys.readouterr().err
    assert training.step == 0


def test_a_schedule_without_our_state_is_an_error_unless_the_step_is_given(launch: Launch, tmp_path: Path) -> None:
    launch(layersync_warmup_steps=10)
    accelerator = accelerate.Accelerator(cpu=True)
    folder = tmp_path / "checkpoint"
    accelerator.save_state(str(folder))
    (folder / "layersync_state.safetensors").unlink()
    with pytest.raises(ConfigError, match="--layersync_start_step N"):
        accelerator.load_state(str(folder))


def test_a_given_start_step_stands_where_the_checkpoint_tells_nothing(launch: Launch, tmp_path: Path) -> None:
    training = launch(layersync_warmup_steps=10, layersync_start_step=4)
    accelerator = accelerate.Accelerator(cpu=True)
    folder = tmp_path / "checkpoint"
    accelerator.save_state(str(folder))
    (folder / "layersync_state.safetensors").unlink()
    accelerator.load_state(str(folder))
    assert training.step == 4


@pytest.mark.parametrize("content", [b"", b"no safetensors"])
def test_a_damaged_state_is_refused(launch: Launch, tmp_path: Path, content: bytes) -> None:
    launch()
    accelerator = accelerate.Accelerator(cpu=True)
    folder = tmp_path / "checkpoint"
    accelerator.save_state(str(folder))
    (folder / "layersync_state.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"layersync_state\.safetensors cannot be read"):
        accelerator.load_state(str(folder))


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


# Metrics.


def test_accelerates_trackers_get_the_metrics(launch: Launch, tmp_path: Path) -> None:
    launch()
    model, inputs = build("dit")
    accelerator = accelerate.Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path / "logs"))
    accelerator.init_trackers("run")
    model, optimiser = accelerator.prepare(model, sgd(model))
    for step in range(3):
        train(model, inputs, optimiser)
        accelerator.log({"loss": 1.0}, step=step)
    accelerator.end_training()
    scalars = read_curves(tmp_path / "logs")
    assert {"loss", "layersync_loss", "layersync_similarity"} <= scalars.keys()
    assert [step for step, _ in scalars["layersync_similarity"]] == [0, 1, 2]
    for (_, loss), (_, similarity) in zip(scalars["layersync_loss"], scalars["layersync_similarity"], strict=True):
        assert loss == pytest.approx(-WEIGHT * similarity, rel=1e-5)
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_scripts_own_writer_gets_the_metrics(launch: Launch, tmp_path: Path) -> None:
    launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    with SummaryWriter(str(tmp_path / "logs")) as writer:
        for step in range(3):
            train(model, inputs, optimiser)
            writer.add_scalar("loss", 1.0, step)
            writer.add_scalar("more", 1.0, step)
    scalars = read_curves(tmp_path / "logs")
    assert [step for step, _ in scalars["layersync_loss"]] == [0, 1, 2]


def test_wandb_gets_the_metrics(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, Any]] = []

    class Run:
        def log(self, data: dict[str, Any], step: int | None = None) -> None:
            logged.append(data)

    wandb = type(nn)("wandb")
    wandb.run = Run()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    launch()
    model, inputs = build("dit")
    train(model, inputs, sgd(model))
    wandb.run.log({"loss": 1.0}, step=0)
    wandb.run.log({"other": 1.0}, step=0)
    assert logged[0].keys() == {"loss", "layersync_loss", "layersync_similarity"}
    assert logged[1] == {"other": 1.0}


def test_a_script_that_logs_nowhere_gets_a_file(launch: Launch, tmp_path: Path) -> None:
    training = launch()
    model, inputs = build("dit")
    train(model, inputs, sgd(model), 60)
    training._finish()
    rows = [json.loads(line) for line in (tmp_path / "layersync_metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert all(row["layersync_loss"] == pytest.approx(-WEIGHT * row["layersync_similarity"]) for row in rows)
    assert "layersync_metrics.jsonl" in training.status.tracker


# Trainable parts, and what is refused by name.


class Probe:
    """A regularizer with a trainable part: a linear map of the first block's tokens."""

    name, order = "probe", 100

    def __init__(self) -> None:
        self.module = nn.Linear(48, 1)

    def layers(self, blocks: Sequence[Any]) -> set[int]:
        self.module = nn.Linear(blocks[0].width, 1)
        return {0}

    def compute(self, states: Any, step: int) -> Term:
        loss = self.module(states.tokens(0)).square().mean()
        return Term(loss, {"probe_loss": loss})


@pytest.fixture
def probe() -> Iterator[list[Probe]]:
    """A plugin of a third party that brings a new probe for every attached model."""
    made: list[Probe] = []

    class Plugin:
        @hookimpl
        def layersync_regularizers(self, config: LayerSyncConfig) -> Sequence[Any]:
            made.append(Probe())
            return made[-1:]

    plugins().manager.register(Plugin(), name="probe of a test")
    yield made
    plugins().manager.unregister(name="probe of a test")


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora outside"])
def test_trainable_parts_join_the_models_optimiser(launch: Launch, probe: list[Probe], lora: bool) -> None:
    launch()
    model, inputs = build("wan")
    if lora:
        optimiser = torch.optim.AdamW([attach_lora(model)])
    else:
        other = torch.optim.AdamW(nn.Linear(2, 2).parameters())
        optimiser = torch.optim.AdamW(model.parameters())
        assert len(other.param_groups[0]["params"]) == 2
    part = probe[0].module
    assert {id(p) for p in part.parameters()} <= {id(p) for p in optimiser.param_groups[0]["params"]}
    before = copy.deepcopy(part.state_dict())
    train(model, inputs, optimiser, 2)
    assert not torch.equal(part.weight, before["weight"])


def test_trainable_parts_are_saved_and_restored(launch: Launch, probe: list[Probe], tmp_path: Path) -> None:
    launch()
    model, inputs = build("dit")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimiser = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    train(model, inputs, optimiser, 2)
    accelerator.save_state(str(tmp_path / "checkpoint"))
    saved = copy.deepcopy(probe[0].module.state_dict())
    train(model, inputs, optimiser, 2)
    assert not torch.equal(probe[0].module.weight, saved["weight"])
    accelerator.load_state(str(tmp_path / "checkpoint"))
    assert all(torch.equal(value, saved[name]) for name, value in probe[0].module.state_dict().items())


def test_a_checkpoint_without_the_trained_parts_is_refused(launch: Launch, probe: list[Probe], tmp_path: Path) -> None:
    launch()
    model, inputs = build("dit")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimiser = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    accelerator.save_state(str(tmp_path / "checkpoint"))  # before anything was trained, so that no target is known
    accelerator.load_state(str(tmp_path / "checkpoint"))
    with pytest.raises(ConfigError, match="the checkpoint has no trained part of probe for DiTTransformer2DModel#1"):
        train(model, inputs, optimiser)
    assert probe


def test_trainable_parts_that_no_optimiser_has_are_an_error(launch: Launch, probe: list[Probe]) -> None:
    launch()
    optimiser = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    model, inputs = build("dit")
    optimiser.add_param_group({"params": list(model.parameters())})
    with pytest.raises(CaptureError, match="they are in no optimiser"):
        train(model, inputs, optimiser)
    assert probe


def test_crepa_by_a_key_of_the_batch(launch: Launch, tmp_path: Path) -> None:
    from transformers import Dinov2Config, Dinov2Model

    from layersync_plugin_crepa import crepa_loss

    torch.manual_seed(0)
    encoder = Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28))
    encoder.eval().save_pretrained(tmp_path / "encoder")
    keys = {"crepa_enabled": True, "crepa_block_index": 1, "crepa_pixels": "pixels", "crepa_pixels_range": "0,1"}
    training = launch(**keys, crepa_model=str(tmp_path / "encoder"), crepa_encoder_image_size=28)
    model, inputs = build("wan")
    untouched = copy.deepcopy(model)
    accelerator = accelerate.Accelerator(cpu=True)
    clips = [{"pixels": torch.rand(3, 3, 28, 28), "latents": torch.randn(4, 3, 8, 8)} for _ in range(6)]
    prepared, optimiser, loader = accelerator.prepare(model, sgd(model), DataLoader(clips, batch_size=2))
    part = training.candidates.attached[0].attachment.modules()["crepa"]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for batch in loader:
        inputs["hidden_states"] = batch["latents"]
        accelerator.backward(main_loss(prepared(**inputs)))
        pixels = (batch["pixels"].flatten(0, 1) - mean[:, None, None]) / std[:, None, None]
        features = encoder(pixel_values=pixels).last_hidden_state[:, 1:].unflatten(0, (2, 3))
        state = states_by_hand(untouched, inputs)[1].unflatten(1, (3, 16))
        term = 0.5 * crepa_loss(state, features, projector=copy.deepcopy(part))[0]
        expected = gradients_by_autograd(by_hand(untouched, inputs) + term, untouched)
        optimiser.step()
        assert_same_gradients(gradients(model), expected, 1e-4)
    assert training.status.terms == 3
    assert {id(p) for p in part.parameters()} <= {id(p) for g in optimiser.param_groups for p in g["params"]}
    assert "crepa block 2 of 4 (blocks.1), crepa_block_index 1" in training.status.targets[0]
    assert "student block 1 of 4" in training.status.targets[0]


def test_an_objective_is_refused_when_the_optimiser_is_made(launch: Launch) -> None:
    class Plugin:
        @hookimpl
        def layersync_objectives(self, config: LayerSyncConfig) -> Sequence[Any]:
            return [SimpleNamespace(name="other")]

    plugins().manager.register(Plugin(), name="objective")
    try:
        launch()
        model, _ = build("dit")
        with pytest.raises(ConfigError, match=r"objective other replaces the main loss.* layersync run leave to the"):
            sgd(model)
    finally:
        plugins().manager.unregister(name="objective")


def test_crepa_without_pixels_is_refused_when_the_optimiser_is_made(launch: Launch) -> None:
    launch(crepa_enabled=True, crepa_block_index=1)
    model, _ = build("wan")
    with pytest.raises(ConfigError, match="crepa_pixels is missing"):
        sgd(model)


def library(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> Any:
    """Put a stand-in of a library among the imported modules."""
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class Engine:
    """What DeepSpeed's engine does with a loss: it divides, and calls backward itself."""

    num_stages = 1

    def gradient_accumulation_steps(self) -> int:
        return 4

    def backward(self, loss: Tensor) -> None:
        (loss / self.gradient_accumulation_steps()).backward()


def test_deepspeed_divides_after_the_term_is_added(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    engine_class = type("DeepSpeedEngine", (Engine,), {})
    library(monkeypatch, "deepspeed", DeepSpeedEngine=engine_class)
    launch()
    patches.install("deepspeed")
    model, batches, expected = micro_batches()
    optimiser, engine = sgd(model), engine_class()
    for inputs in batches:
        engine.backward(main_loss(model(**inputs)))
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_pipeline_of_several_stages_is_refused(launch: Launch, monkeypatch: pytest.MonkeyPatch, stages: int) -> None:
    class PipelineEngine(Engine):
        def __init__(self, num_stages: int) -> None:
            self.num_stages = num_stages

    library(monkeypatch, "deepspeed", DeepSpeedEngine=type("DeepSpeedEngine", (Engine,), {}))
    library(monkeypatch, "deepspeed.runtime.pipe.engine", PipelineEngine=PipelineEngine)
    launch()
    patches.install("deepspeed")
    if stages == 1:
        assert PipelineEngine(1).num_stages == 1
    else:
        with pytest.raises(CaptureError, match="a DeepSpeed pipeline of 2 stages"):
            PipelineEngine(2)


@pytest.mark.parametrize("name", ["lightning", "lightning_fabric"])
def test_fabric(launch: Launch, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    class Fabric:
        def backward(self, tensor: Tensor, *args: Any, model: Any = None) -> None:
            tensor.backward(*args)

    library(monkeypatch, name, Fabric=Fabric)
    library(monkeypatch, "lightning.fabric" if name == "lightning" else name, Fabric=Fabric)
    launch()
    patches.install(name)
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    Fabric().backward(main_loss(model(**inputs)))
    optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))


def test_megatron_is_refused_by_name(launch: Launch) -> None:
    launch()
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.state.distributed_type = accelerate.DistributedType.MEGATRON_LM
    with pytest.raises(CaptureError, match="Megatron-LM"):
        accelerator.backward(torch.ones((), requires_grad=True) * 2)


def attach_lora(model: Any) -> nn.Parameter:
    """Train one weight that is no part of the model, as trainers with LoRA of their own do."""
    model.requires_grad_(False)
    linear = model.blocks[0].attn1.to_q
    lora = nn.Parameter(0.1 * torch.randn(linear.out_features, linear.in_features))
    original = linear.forward
    linear.forward = lambda x: original(x) + x @ lora.T
    return lora


def test_lora_weights_outside_of_the_model(launch: Launch) -> None:
    training = launch()
    model, inputs = build("wan")
    lora = attach_lora(model)
    optimiser = torch.optim.SGD([lora], lr=0)
    loss = main_loss(model(**inputs))
    (plain,) = torch.autograd.grad(loss, [lora], retain_graph=True)
    loss.backward()
    optimiser.step()
    assert training.status.terms == 1
    assert lora.grad is not None
    assert not torch.allclose(lora.grad, plain)


def test_warnings_are_one_line_and_said_once(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch(layersync_teacher_block=None)
    model, inputs = build("dit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, inputs, sgd(model), 2)
    assert capsys.readouterr().err.count("layersync: warning: student and teacher are the same block") == 1


def test_an_error_of_ours_is_one_line(launch: Launch, capsys: pytest.CaptureFixture[str]) -> None:
    launch()
    sys.excepthook(LayerSyncError, LayerSyncError("told in\none line"), None)
    assert capsys.readouterr().err == "layersync: error: told in one line\n"


def test_models_from_before_the_start_are_found(launch: Launch) -> None:
    model, inputs = build("dit")
    untouched = copy.deepcopy(model)
    optimiser = sgd(model)
    training = launch()
    patches.adopt()
    main_loss(model(**inputs)).backward()
    optimiser.step()
    assert_same_gradients(gradients(model), gradients_by_autograd(by_hand(untouched, inputs), untouched))
    assert training.status.terms == 1
