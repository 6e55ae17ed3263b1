"""Which forwards and which losses get the term, and what is refused where none can get it."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Sequence
from typing import Any

import accelerate
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from layersync_core.errors import CaptureError
from layersync_core.families.registry import load_tiny
from tests.models import assert_same_gradients, build, gradients, gradients_by_autograd, mean_cosine, states_by_hand
from tests.run.inside import WEIGHT, Launch, attach_lora, by_hand, main_loss, micro_batches, sgd
from tests.run.processes import RUN, Script, python, run


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
    assert (training.journal.status.terms, training.journal.status.steps) == (1, 1)
    assert "student block 1 of" in training.journal.status.targets[0]


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
    assert training.journal.status.steps == 3


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
    assert training.journal.status.terms == 1


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
        return main_loss(torch.func.functional_call(model, parameters, (), inputs))

    for name, grad in torch.func.grad(loss)(parameters).items():
        parameters[name].grad = grad
    with pytest.raises(CaptureError, match=r"the last forward ran under torch\.func"):
        optimiser.step()


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
    assert len(training.journal.status.targets) == 1


def test_forwards_that_nobody_uses_keep_no_memory(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    sgd(model)
    attached = training.candidates.attached[0].attached_to
    for _ in range(20):
        model(**inputs)
    gc.collect()
    model(**inputs)
    assert not attached.forwards
    output = model(**inputs)
    assert len(attached.forwards) == 1
    del output
    assert not attached.forwards


def test_a_frozen_model_leaves_no_forward_behind(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    sgd(model)
    model.requires_grad_(False)
    outputs = [model(**inputs) for _ in range(20)]
    attached = training.candidates.attached[0].attached_to
    assert not attached.forwards
    assert len(outputs) == 20


# Other ways to run and to train a model.


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
    assert training.journal.status.terms == 3


def test_lora_weights_outside_of_the_model(launch: Launch) -> None:
    training = launch()
    model, inputs = build("wan")
    lora = attach_lora(model)
    optimiser = torch.optim.SGD([lora], lr=0)
    loss = main_loss(model(**inputs))
    (plain,) = torch.autograd.grad(loss, [lora], retain_graph=True)
    loss.backward()
    optimiser.step()
    assert training.journal.status.terms == 1
    assert lora.grad is not None
    assert not torch.allclose(lora.grad, plain)


# Memory.

MEMORY = """
import gc, json, weakref, torch, tiny_dit

model = tiny_dit.build()
optimiser = torch.optim.SGD(model.parameters(), lr=0.001)
outputs = []

def step():
    optimiser.zero_grad()
    tiny_dit.loss_of(model, *tiny_dit.batch()).backward()
    optimiser.step()

def count():
    gc.collect()
    objects = gc.get_objects()
    return [
        sum(issubclass(type(item), torch.Tensor) for item in objects),
        len(objects),
        sum(reference() is not None for reference in outputs),
    ]

def round():
    for number in range(100):
        with torch.no_grad():
            outputs.append(weakref.ref(model(*tiny_dit.batch())))
        if number % 10 in (2, 5, 8):  # the graph of this one is never used
            outputs.append(weakref.ref(model(*tiny_dit.batch())))
        if number % 2 == 0:  # metrics wait for their fiftieth step
            step()
    outputs[:] = [reference for reference in outputs if reference() is not None]
    return count()

round()
print(json.dumps([round() for _ in range(10)]))
"""


@pytest.mark.slow
def test_validation_leaves_memory_as_it_is(script: Script) -> None:
    done = run([*RUN, *python(script(MEMORY))])
    counts = json.loads(done.stdout)
    assert len(counts) == 10
    tensors, objects, kept = zip(*counts, strict=True)
    assert len(set(tensors)) == 1
    assert max(kept) == 0
    assert max(objects) - min(objects) < 100  # one for each forward would be 130 more at every count
    assert "550 steps" in done.stderr


def test_a_loss_that_no_term_can_be_made_for_is_an_error(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    model.requires_grad_(False)
    model.proj_out_2.requires_grad_(True)
    optimiser = sgd(model)
    with pytest.raises(CaptureError, match=r"block 1 of 6 .* depends on nothing trainable"):
        main_loss(model(**inputs)).backward()
    assert training.journal.status.terms == 0
    assert optimiser


def test_blocks_that_a_program_freezes_later_end_its_run(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    model.get_submodule("pos_embed").register_forward_hook(lambda module, args, output: output.requires_grad_())
    optimiser = sgd(model)
    main_loss(model(**inputs)).backward()
    optimiser.step()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("transformer_blocks.3", "proj_out")))
    with pytest.raises(CaptureError, match=r"block 1 of 6 .* depends on nothing trainable.* from here on"):
        main_loss(model(**inputs)).backward()
    assert training.journal.status.steps == 1
