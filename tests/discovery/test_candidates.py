"""Which models ``layersync run`` takes with family auto, in this process."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_core import CaptureError, ConfigError
from layersync_core.run.settings import read
from layersync_core.testing import seed_everything
from tests.discovery.models import D, Model, inputs
from tests.discovery.test_discovery import term_of, watched
from tests.run.inside import WEIGHT, Launch, switched_on

AUTO = {"layersync_family": "auto", "layersync_student_block": 2, "layersync_teacher_block": 4}


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    with switched_on(tmp_path) as begin:
        yield begin


class Program(nn.Module):
    """What a library keeps a model in, whose forward is not the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.scale = Model("registers"), nn.Parameter(torch.ones(1))


def assert_trained(model: Model, weights: list[Tensor], **options: Any) -> None:
    """Run two losses of one step, and compare their gradients with those of plain hooks."""
    wanted = [torch.zeros_like(weight) for weight in weights]
    for weight in weights:
        weight.grad = None
    for _ in range(2):
        with watched(model) as seen:
            output = model(*inputs())
        main = (output - 1).pow(2).mean() / 2
        by_hand = main + WEIGHT / 2 * term_of(model.form, seen)
        for total, gradient in zip(wanted, torch.autograd.grad(by_hand, weights, retain_graph=True), strict=True):
            total += gradient
        main.backward()
    for weight, gradient in zip(weights, wanted, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_a_model_inside_of_something_else(launch: Launch) -> None:
    seed_everything()
    training = launch(**AUTO, layersync_accumulation_steps=2)
    program = Program()
    optimiser = torch.optim.SGD(program.parameters(), lr=1e-2)
    for _ in range(2):
        assert_trained(program.net, [program.net.embed.weight, program.net.blocks[0].inner.weight])
        optimiser.step()
    assert [line.split(":")[0] for line in training.journal.status.targets] == ["Model#1 (family auto)"]
    assert training.journal.status.steps == 2


def test_weights_that_stand_outside_need_the_target(launch: Launch) -> None:
    seed_everything()
    launch(**AUTO, layersync_target="Model", layersync_accumulation_steps=2)
    model, lora = Model("registers"), nn.Linear(D, D)
    model.requires_grad_(False)
    model.blocks[0].inner.register_forward_hook(lambda module, args, output: output + lora(args[0]))
    optimiser = torch.optim.SGD(lora.parameters(), lr=1e-2)
    assert_trained(model, [lora.weight])
    optimiser.step()


def test_several_models_in_one_loss_are_listed(launch: Launch) -> None:
    launch(**AUTO)
    one, other = Model("registers"), Model("plain")
    torch.optim.SGD([*one.parameters(), *other.parameters()], lr=0)
    loss = one(*inputs()).mean() + other(*inputs()).mean()
    with pytest.raises(ConfigError, match=r"Model#1, Model#2.*--layersync_target"):
        loss.backward()


def test_one_of_several_is_named(launch: Launch) -> None:
    training = launch(**AUTO, layersync_target="Model#2")
    one, other = Model("registers"), Model("plain")
    optimiser = torch.optim.SGD([*one.parameters(), *other.parameters()], lr=0)
    (one(*inputs()).mean() + other(*inputs()).mean()).backward()
    optimiser.step()
    assert [line.split(" ")[0] for line in training.journal.status.targets] == ["Model#2"]


def test_a_model_that_was_compiled_before_is_refused(launch: Launch) -> None:
    launch(**AUTO)
    model = Model("plain")
    model.compile(backend="eager")
    with pytest.raises(CaptureError, match=r"Model is compiled.*--save adapter\.json"):
        torch.optim.SGD(model.parameters(), lr=0)


def test_a_text_encoder_that_is_not_trained_is_left_alone(launch: Launch) -> None:
    training = launch(**AUTO)
    model, encoder = Model("registers"), Model("plain")
    optimiser = torch.optim.SGD(model.parameters(), lr=0)
    sample, text = inputs()
    with torch.no_grad():
        encoder(*inputs())
    model(sample, text).mean().backward()
    optimiser.step()
    assert len(training.journal.status.targets) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layersync_family": "auto", "layersync_suggest": 2}, "an adapter file"),
        ({"layersync_save_adapter": "a.json"}, "layersync_family auto"),
    ],
)
def test_settings_that_would_do_nothing(given: dict[str, Any], said: str) -> None:
    on = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}
    with pytest.raises(ConfigError, match=said):
        read({**on, **given})
