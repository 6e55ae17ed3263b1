"""The term and its gradients, compared with the same computed without layersync."""

from __future__ import annotations

import copy

import pytest
import torch
from layersync_core import BlockStackAdapter, ConfigError, attach
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block: it returns its tokens and what it adds to them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x))


class Toy(nn.Module):
    """A projection and four blocks on a sequence of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 6)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


TOY = BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks")
ENABLED = {"quiet_tokens_enabled": True, "quiet_tokens_block": 2, "quiet_tokens_lambda": 0.5, "quiet_tokens_limit": 1.5}


@pytest.fixture
def model() -> Toy:
    torch.manual_seed(0)
    return Toy()


@pytest.fixture
def x() -> Tensor:
    """Three samples of five tokens, of which one in each is loud."""
    x = torch.randn(3, 5, 6)
    x[:, 2] *= 8
    return x


def expected_loss(model: Toy, x: Tensor) -> Tensor:
    """Return the term token by token, from the blocks called by hand."""
    first, second = model.blocks[0], model.blocks[1]
    state_BSD = second(first(model.embed(x)))
    excesses = []
    for sample_SD in state_BSD:
        norms = [token_D.square().sum().sqrt() for token_D in sample_SD]
        mean = sum(norm.detach() for norm in norms) / len(norms)
        excesses += [torch.clamp(norm / mean - 1.5, min=0) ** 2 for norm in norms]
    return 0.5 * torch.stack(excesses).mean()


def test_the_term_and_its_gradients(model: Toy, x: Tensor) -> None:
    twin = copy.deepcopy(model)
    with attach(model, ENABLED, adapter=TOY) as sync:
        model(x)
        loss = sync.loss()
        loss.backward()
        assert set(sync.metrics()) == {"quiet_tokens_loss", "quiet_tokens_loudest"}
        assert sync.describe()[1:] == ["quiet_tokens: block 2 of 4 (blocks.1), up to 1.5 times the mean norm"]
    expected = expected_loss(twin, x)
    expected.backward()
    assert loss > 0
    torch.testing.assert_close(loss, expected)
    for (name, found), right in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (found.grad is None) == (right.grad is None), name
        if found.grad is not None:
            torch.testing.assert_close(found.grad, right.grad)


def test_a_step_against_the_gradient_makes_the_loudest_token_quieter(model: Toy, x: Tensor) -> None:
    loudest = []
    with attach(model, ENABLED, adapter=TOY) as sync:
        for _ in range(2):
            model(x)
            sync.loss().backward()
            loudest.append(sync.metrics()["quiet_tokens_loudest"])
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter -= 0.1 * parameter.grad
    assert loudest[1] < loudest[0]


def test_weights_of_samples_count(model: Toy, x: Tensor) -> None:
    with attach(model, ENABLED, adapter=TOY) as sync:
        model(x)
        weighted = sync.loss(sample_weight=torch.tensor([1.0, 0.0, 0.0]))
        model(x[:1])
        torch.testing.assert_close(weighted, sync.loss() / 3)


def test_the_weight_rises_over_the_warm_up(model: Toy, x: Tensor) -> None:
    with attach(model, ENABLED | {"quiet_tokens_warmup_steps": 10}, adapter=TOY) as sync:
        losses = []
        for step in (0, 5, 10):
            model(x)
            losses.append(sync.loss(step=step).detach())
    assert losses[0] == 0
    torch.testing.assert_close(losses[1], losses[2] / 2)


def test_it_is_off_without_its_switch(model: Toy) -> None:
    with attach(model, {}, adapter=TOY) as sync:
        assert sync.apply(torch.ones(())) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"quiet_tokens_block": 5}, "valid are 1 to 4"),
        ({"quiet_tokens_limit": 0.5}, "quiet_tokens_limit"),
        ({"quiet_tokens_lambda": 1e-50}, "single precision takes it for 0"),
    ],
)
def test_mistakes(model: Toy, more: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        attach(model, ENABLED | more, adapter=TOY)
