"""The example against the formula written out, pair by pair."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import layersync_plugin_example_dispersive as example
from layersync_core import ConfigError, attach
from tests.models import TOY, assert_same_gradients, gradients, gradients_by_autograd, toy, toy_input, toy_states

ENABLED = {"dispersive_enabled": True, "dispersive_block": 2}


def test_the_term_and_its_gradients() -> None:
    model, x = toy(), toy_input(batch=3)
    untouched = copy.deepcopy(model)
    with attach(model, ENABLED | {"dispersive_tau": 0.3, "dispersive_lambda": 0.25}, adapter=TOY) as sync:
        model(x)
        loss = sync.loss()
        loss.backward()
        assert sync.describe() == ["family: toy", "dispersive: block 2 of 4 (blocks.1)"]
        assert set(sync.metrics()) == {"dispersive_loss", "dispersive_distance"}
    state = toy_states(untouched, x)[1]
    pairs: list[Any] = [torch.exp(-(one - other).square().mean() / 0.3) for one in state for other in state]
    expected = 0.25 * torch.stack(pairs).mean().log()
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, untouched))


def test_samples_that_are_far_apart_leave_each_one_with_itself() -> None:
    model, x = toy(), 1e6 * toy_input(batch=4)
    with attach(model, ENABLED, adapter=TOY) as sync:
        model(x)
        assert float(sync.loss().detach()) == pytest.approx(0.5 * math.log(1 / 4))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"dispersive_block": 5}, "valid are 1 to 4"),
        ({"dispersive_tua": 1}, "did you mean dispersive_tau"),
        ({"dispersive_lambda": 0}, "dispersive_lambda is 0"),
        ({"dispersive_lambda": math.inf}, "dispersive_lambda is inf"),
        ({"dispersive_lambda": 1e-50}, "single precision takes it for 0"),
    ],
)
def test_mistakes(more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        attach(toy(), ENABLED | more, adapter=TOY)


def test_it_is_short_and_light() -> None:
    assert len(Path(example.__file__).read_text().splitlines()) < 60
    code = "import layersync_plugin_example_dispersive, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
