"""What an objective may say beside the protocol, and its part in an attachment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from layersync_core import CaptureError, ConfigError, Objective, ObjectiveBase, Term, attach, completed
from layersync_core.losses import claims
from tests.models import build

PAIR = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}


class Small:
    name = "small"

    def compute(self, predict: Any, batch: Any, step: int) -> Term:
        return Term(predict(batch.noisy, batch.time, batch.labels).mean())


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("average", torch.zeros(3))


class Large(Small, ObjectiveBase):
    name = "large"

    def begin(self, model: nn.Module, guided: bool) -> None:
        self.module = Part()


def test_what_it_leaves_out_is_filled_in() -> None:
    plain = completed(Small())
    assert isinstance(Small(), Objective)
    assert plain.module is None
    assert plain.describe() == []
    assert plain.draw(None, torch.ones(1), torch.ones(1)) == {}  # type: ignore[arg-type]
    plain.begin(nn.Linear(1, 1), True)
    plain.after_step(1)
    whole = Large()
    completed(whole).begin(nn.Linear(1, 1), True)
    assert completed(whole).module is whole.module is not None


@pytest.mark.parametrize(("member", "meant"), [("after_steps", "after_step"), ("exports", "export")])
def test_a_member_that_nobody_would_call_is_refused(member: str, meant: str) -> None:
    kind = type("Near", (Small,), {member: lambda self, *given: None})
    with pytest.raises(ConfigError, match=f"objective small has a member {member}, .* is called {meant}"):
        claims.check_objective(kind())
    claims.check_objective(Large())


@pytest.mark.parametrize("settings", [PAIR, {"layersync_enabled": False}])
def test_its_part_is_saved_and_restored_with_the_attachment(settings: dict[str, Any]) -> None:
    def state_of(value: float, state: dict[str, Any] | None = None) -> dict[str, Any]:
        objective = Large()
        objective.begin(nn.Linear(1, 1), True)
        assert isinstance(objective.module, Part)
        nn.init.constant_(objective.module.weight, value)
        nn.init.constant_(objective.module.average, value)
        with attach(build("dit")[0], settings, objective=objective) as sync:
            assert [*sync.modules()] == ["large"]
            if state is not None:
                sync.load_state_dict(state)
            return {name: tensor.clone() for name, tensor in sync.state_dict()["modules"]["large"].items()}

    first = state_of(1.0)
    assert first["weight"].tolist() == [1.0, 1.0]
    restored = state_of(2.0, {"version": 1, "step": 3, "modules": {"large": first}})
    assert restored["weight"].tolist() == [1.0, 1.0]
    assert restored["average"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("settings", [PAIR, {"layersync_enabled": False}])
def test_a_state_without_it_is_refused(settings: dict[str, Any]) -> None:
    with attach(build("dit")[0], settings) as sync:
        state = sync.state_dict()
    objective = Large()
    objective.begin(nn.Linear(1, 1), True)
    with (
        attach(build("dit")[0], settings, objective=objective) as sync,
        pytest.raises(ConfigError, match=r"has trainable parts \[\], this attachment has \['large'\]"),
    ):
        sync.load_state_dict(state)


@pytest.mark.parametrize("given", [False, True])
def test_a_part_that_no_optimiser_has_is_told_without_a_regularizer_too(given: bool) -> None:
    model, objective = nn.Linear(2, 1), Large()
    objective.begin(model, True)
    part = objective.module
    assert isinstance(part, Part)
    optimiser = torch.optim.SGD([*model.parameters(), *(part.parameters() if given else ())], lr=0.01)

    def train() -> None:
        with attach(model, {"layersync_enabled": False}, objective=objective) as sync:
            for _ in range(6):
                sync.apply(model(part.weight).square().sum()).backward()
                optimiser.step()
                optimiser.zero_grad()

    if given:
        train()
        return
    with pytest.raises(CaptureError, match="the trainable part of large gets gradients"):
        train()
