"""Optional members of a regularizer: it need not have them, and a misspelt one is reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from layersync_core import Block, ConfigError, LayerSyncError, RegularizerBase, Schedule, Term, attach
from layersync_core.losses.enabled import Enabled
from tests.losses.support import Other
from tests.models import TOY, settings, toy

BLOCKS = [Block(index, f"blocks.{index}") for index in range(4)]


class Bare:
    """What the protocol asks for, and nothing else."""

    name, order = "bare", 50

    def layers(self, blocks: Any) -> set[int]:
        return {1}

    def compute(self, states: Any, step: int) -> Term | None:
        return None


def saying(**members: Any) -> Any:
    item = Bare()
    vars(item).update(members)
    return item


def test_what_is_left_out_is_filled_in() -> None:
    enabled = Enabled.of(Bare(), BLOCKS)
    assert (enabled.layers, enabled.module, enabled.uses_steps, list(enabled.pairs)) == ({1}, None, False, [])
    assert enabled.active(10**9)
    assert enabled.describe() == []
    enabled.begin(nn.Linear(1, 1))


def test_a_base_has_the_same_defaults() -> None:
    class Based(Bare, RegularizerBase):
        pass

    enabled = Enabled.of(Based(), BLOCKS)
    assert (enabled.module, enabled.uses_steps, enabled.describe()) == (None, False, [])


def test_a_schedule_decides_what_is_active_and_needs_steps() -> None:
    enabled = Enabled.of(saying(schedule=Schedule(cutoff_step=3)), BLOCKS)
    assert [enabled.active(step) for step in (0, 2, 3)] == [True, True, False]
    assert enabled.uses_steps


def test_who_says_when_it_is_active_needs_steps_unless_it_says_that_there_is_no_schedule() -> None:
    assert Enabled.of(saying(active=lambda step: step < 5), BLOCKS).uses_steps
    assert not Enabled.of(saying(active=lambda step: True, schedule=None), BLOCKS).uses_steps


def test_who_inherits_that_there_is_no_schedule_and_says_when_it_is_active_needs_steps() -> None:
    class Based(Bare, RegularizerBase):
        def active(self, step: int) -> bool:
            return step < 5

    assert Enabled.of(Based(), BLOCKS).uses_steps


@pytest.mark.parametrize(
    ("nearly", "meant"),
    [("activ", "active"), ("actve", "active"), ("begins", "begin"), ("discribe", "describe"), ("describes", "describe"),
     ("modul", "module"), ("modules", "module"), ("shedule", "schedule"), ("scheduel", "schedule")],
)  # fmt: skip
def test_a_near_miss_is_told(nearly: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"regularizer bare has a member {nearly}, .* called {meant}"):
        Enabled.of(saying(**{nearly: lambda *_: True}), BLOCKS)
    kind = type("Misspelt", (Bare,), {nearly: lambda self, *_: True})
    with pytest.raises(ConfigError, match=meant):
        Enabled.of(kind(), BLOCKS)


def test_a_near_miss_ends_attach_and_leaves_the_model_free(register: Any) -> None:
    item = Other(lambda states, step: None)
    item.activ = lambda step: True  # type: ignore[attr-defined]
    register(item)
    model = toy()
    with pytest.raises(ConfigError, match="activ"):
        attach(model, settings(1, 3), adapter=TOY)
    del item.activ  # type: ignore[attr-defined]
    attach(model, settings(1, 3), adapter=TOY).remove()


def test_other_members_are_allowed() -> None:
    more = dict.fromkeys(("pair", "config", "activation", "student", "teacher", "description", "_active", "weight"), 1)
    assert Enabled.of(saying(**more), BLOCKS).layers == {1}
    # Beside the right one, a name that is nearly the same is somebody's own.
    assert Enabled.of(saying(active=lambda step: False, actives=[]), BLOCKS).active(0) is False


def test_a_regularizer_that_is_a_module_itself() -> None:
    class Whole(nn.Module, Bare):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Linear(2, 2)

    assert Enabled.of(Whole(), BLOCKS).layers == {1}


def test_layers_that_are_not_there() -> None:
    class Deep(Bare):
        def layers(self, blocks: Any) -> set[int]:
            return {2, 4, 9}

    with pytest.raises(LayerSyncError, match="bare asks for layer 4, 9; the layers of this model are 0 to 3"):
        Enabled.of(Deep(), BLOCKS)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        (1.0, "returned a float; expected a Term"),
        (Term(torch.ones(2)), r"returned loss as shape \(2,\); expected a scalar"),
        (Term(torch.ones(()), {"m": 3}), "returned m as a int; expected a scalar"),  # type: ignore[dict-item]
    ],
)
def test_a_term_of_another_kind(returned: Any, says: str) -> None:
    item = saying(compute=lambda states, step: returned)
    with pytest.raises(LayerSyncError, match=f"regularizer bare {says}"):
        Enabled.of(item, BLOCKS).term(None, 0)  # type: ignore[arg-type]
