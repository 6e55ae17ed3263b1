"""Which training forwards are held: those that a loss may still depend on, and no more."""

from __future__ import annotations

from typing import Any

import torch

from layersync_core.run.training import Training
from tests.models import build, states_by_hand
from tests.run.inside import Launch, main_loss, sgd


def held(training: Training) -> int:
    (candidate,) = training.candidates.attached
    return len(candidate.attached_to.forwards)


def test_forwards_are_held_as_long_as_what_they_returned(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    outputs: list[Any] = [model(**inputs) for _ in range(3)]
    with torch.no_grad():
        model(**inputs)
    assert held(training) == 3
    while outputs:
        outputs.pop(len(outputs) // 2)
        assert held(training) == len(outputs)
    assert optimiser


def test_a_forward_of_blocks_alone_is_held_as_long_as_what_they_returned(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    returned: list[Any] = [states_by_hand(model, inputs), model(**inputs)]
    assert held(training) == 2
    for left in (1, 0):
        returned.pop()
        assert held(training) == left
    assert optimiser


def test_of_too_many_forwards_the_oldest_are_forgotten(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    outputs = [model(**inputs) for _ in range(40)]
    assert held(training) == 32
    del outputs[-32:]
    assert held(training) == 0
    assert optimiser


def test_all_forwards_of_a_loss_are_forgotten_with_it(launch: Launch) -> None:
    training = launch()
    model, inputs = build("dit")
    optimiser = sgd(model)
    outputs = [model(**inputs) for _ in range(3)]
    (main_loss(outputs[0]) + main_loss(outputs[2])).backward()
    assert held(training) == 1
    main_loss(outputs[1]).backward()
    assert (held(training), training.journal.status.terms) == (0, 2)
    assert optimiser
