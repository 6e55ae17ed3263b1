"""Regional compilation: accelerate builds a second model around the hooks and parameters of the first."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import accelerate
import pytest
import torch
from accelerate.utils import TorchDynamoPlugin, compile_regions
from torch import nn

from layersync_core import CaptureError, ConfigError, attach
from layersync_core.families.registry import load_tiny
from tests.models import (
    assert_same_gradients,
    attached,
    build,
    generated,
    gradients,
    gradients_by_autograd,
    mean_cosine,
    randomise,
    settings,
    states_by_hand,
    toy,
    toy_input,
    toy_term,
)
from tests.run.conftest import launch as launch
from tests.run.inside import Launch, by_hand, main_loss, sgd

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.usefixtures("fresh_dynamo"),
]


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def regions(model: Any) -> Any:
    return compile_regions(model, backend="eager")


def each_block(model: Any) -> Any:
    for stack in (model.transformer_blocks, model.single_transformer_blocks):
        for index, block in enumerate(stack):
            stack[index] = torch.compile(block, backend="eager")
    return model


def attached_first(model: nn.Module, compiled: Callable[[Any], Any]) -> tuple[Any, Any]:
    sync = attach(model, settings(1, 3))
    return sync, compiled(model)


def attached_to_the_compiled(model: nn.Module, compiled: Callable[[Any], Any]) -> tuple[Any, Any]:
    run = compiled(model)
    return attach(run, settings(1, 3)), run


def attached_to_the_original(model: nn.Module, compiled: Callable[[Any], Any]) -> tuple[Any, Any]:
    run = compiled(model)
    return attach(model, settings(1, 3)), run


ORDERS = [attached_first, attached_to_the_compiled, attached_to_the_original]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("compiled", [regions, each_block])
def test_flux_with_references(order: Callable[..., Any], compiled: Callable[[Any], Any]) -> None:
    model, inputs = build("flux references")
    states = states_by_hand(model, inputs)
    expected = -0.5 * mean_cosine(states[0], states[2], generated(inputs))
    reference = gradients_by_autograd(expected, model)
    sync, run = order(model, compiled)
    with sync:
        for _ in range(2):
            with torch.no_grad():
                run(**inputs)
            run(**inputs)
            loss = sync.loss()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            found = {name.replace("_orig_mod.", ""): grad for name, grad in gradients(model).items()}
            assert_same_gradients(found, reference)


@pytest.mark.parametrize("order", ORDERS)
def test_qwen_image(order: Callable[..., Any]) -> None:
    tiny = load_tiny("qwen_image")
    model = randomise(tiny.tiny_model())
    inputs = tiny.example_inputs(model, 2)
    with attach(model, settings(1, 3)) as sync:
        sync.apply(main_loss(model(**inputs)[0])).backward()
    expected = gradients(model)
    sync, run = order(model, regions)
    with sync:
        sync.apply(main_loss(run(**inputs)[0])).backward()
        assert_same_gradients(gradients(model), expected)


def test_accelerate_under_run(launch: Launch) -> None:
    launch()
    model, inputs = build("flux references")
    expected = gradients_by_autograd(by_hand(untouched := copy.deepcopy(model), inputs), untouched)
    plugin = TorchDynamoPlugin(backend="eager", use_regional_compilation=True)
    accelerator = accelerate.Accelerator(cpu=True, dynamo_plugin=plugin)
    prepared, optimiser = accelerator.prepare(model, sgd(model))
    assert prepared is not model
    accelerator.backward(main_loss(prepared(**inputs)))
    optimiser.step()
    assert_same_gradients(gradients(model), expected)


def test_both_are_one_model() -> None:
    model, _ = build("flux references")
    with attach(model, settings(1, 3)), pytest.raises(ConfigError, match="has an attachment already"):
        attach(regions(model), settings(1, 3))


def test_an_average_that_was_copied_part_by_part_is_another_model() -> None:
    model, x = toy(), toy_input()
    average = copy.copy(model)
    average._modules = copy.deepcopy(model._modules)
    with attached(model) as sync:
        average(x)
        with pytest.raises(CaptureError, match="the attached model did not run"):
            sync.loss()
        model(x)
        average(toy_input(seed=1))
        torch.testing.assert_close(sync.loss(), toy_term(model, x)[0], rtol=1e-5, atol=1e-6)
