"""What an attachment promises: attach and remove, metrics, schedules, checkpoints, and no wait for the device."""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from layersync_core import Attachment, CaptureError, ConfigError, attach
from tests.models import (
    CASES,
    TOY,
    Toy,
    attached,
    build,
    close,
    generated,
    hooks_on,
    mean_cosine,
    settings,
    states_by_hand,
    toy,
    toy_input,
    toy_term,
)


# Attaching and removing.
@pytest.mark.parametrize("case", CASES)
def test_hooks_change_no_output_and_no_state_and_all_come_off(case: str) -> None:
    model, inputs = build(case)
    before, keys, count = model(**inputs).sample, list(model.state_dict()), hooks_on(model)
    with attach(model, settings()) as sync:
        assert hooks_on(model) > count
        output = model(**inputs).sample
        assert torch.equal(output, before)
        assert list(model.state_dict()) == keys
        sync.apply(output.mean()).backward()
    assert hooks_on(model) == count
    assert torch.equal(model(**inputs).sample, before)


def test_remove_may_be_repeated_and_attach_again() -> None:
    model = toy()
    for _ in range(3):
        sync = attached(model)
        with pytest.raises(ConfigError, match=r"has an attachment already.*remove\(\)"):
            attached(model)
        model(toy_input())
        close(sync.loss(), toy_term(model, toy_input())[0])
        sync.remove()
        sync.remove()
        assert hooks_on(model) == 0


def test_the_context_ends_with_an_error_too() -> None:
    model = toy()
    with pytest.raises(ArithmeticError), attached(model):
        raise ArithmeticError
    assert hooks_on(model) == 0
    attached(model).remove()


@pytest.mark.parametrize("wrong", [settings(9, 10), settings(1, 5)])
def test_attach_that_raises_leaves_nothing(wrong: dict[str, Any]) -> None:
    model = toy()
    with pytest.raises(ConfigError, match="LayerSync could not find layer"):
        attach(model, wrong, adapter=TOY)
    assert hooks_on(model) == 0
    attached(model).remove()


def test_two_models_are_independent() -> None:
    one, two, x = toy(), Toy(width=16), toy_input()
    first, second = attached(one), attached(two, 2, 4)
    one(x)
    two(x)
    losses = second.loss(), first.loss()
    close(losses[0], toy_term(two, x, 2, 4)[0])
    close(losses[1], toy_term(one, x)[0])
    first.remove()
    two(x)
    second.loss()
    with pytest.raises(CaptureError):
        second.loss()
    second.remove()


@pytest.mark.parametrize("given", [{}, {"layersync_enabled": False, "layersync_student_block": 99}])
def test_disabled_is_inert(given: dict[str, Any]) -> None:
    model, loss = toy(), torch.rand((), requires_grad=True)
    sync, again = attach(model, given), attach(model, given)
    assert hooks_on(model) == 0
    model(toy_input())
    model(toy_input())
    assert sync.apply(loss) is loss
    assert float(sync.loss()) == 0
    assert sync.metrics() == {}
    assert (sync.pairs, sync.student, sync.teacher, sync.blocks) == ([], None, None, [])
    with sync.paused(), torch.no_grad():
        assert again.apply(loss) is loss
    sync.load_state_dict(sync.state_dict())
    sync.remove()


def test_a_removed_attachment_says_so() -> None:
    model, loss = toy(), torch.zeros(())
    sync = attached(model)
    model(toy_input())
    sync.remove()
    model(toy_input())
    for use in (lambda: sync.apply(loss), sync.loss):
        with pytest.raises(CaptureError, match="removed"):
            use()


def test_a_renamed_subclass_is_recognised() -> None:
    model, inputs = build("flux references")
    states = states_by_hand(model, inputs)
    cls = type(model)
    model.__class__ = type(f"FSDP{cls.__name__}", (cls,), {})  # as fully_shard does
    with attach(model, settings(2, 4)) as sync:
        assert sync.family == "flux"
        model(**inputs)
        close(sync.loss(), -0.5 * mean_cosine(states[1], states[3], generated(inputs)).detach())


def test_blocks_are_named() -> None:
    with attach(build("flux")[0], settings(0, "6")) as sync:
        assert [str(block) for block in sync.blocks][1:3] == [
            "block 2 of 6 (transformer_blocks.1)",
            "block 3 of 6 (single_transformer_blocks.0)",
        ]
        assert str(sync.student) == "block 1 of 6 (transformer_blocks.0)"
        assert str(sync.teacher) == "block 6 of 6 (single_transformer_blocks.3)"
        assert sync.describe()[1:3] == [f"student: {sync.student}", f"teacher: {sync.teacher}"]


def test_apply_without_grad_is_refused() -> None:
    model = toy()
    with attached(model) as sync:
        model(toy_input())
        with torch.no_grad(), pytest.raises(CaptureError, match="no_grad"):
            sync.apply(torch.zeros(()))
        model(toy_input())
        sync.loss()


def test_a_main_loss_that_trains_nothing_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    model = toy()
    with attached(model) as sync:
        sync.apply(model(toy_input()).mean()).backward()
        assert caplog.text == ""
        for _ in range(2):
            sync.apply(model(toy_input()).mean().detach()).backward()
    assert caplog.text.count("the main loss has no gradient") == 1
    assert "LayerSync's term alone trains Toy" in caplog.text


# Metrics.
def test_metrics_are_means_since_they_were_read() -> None:
    model = toy()
    inputs = [toy_input(seed=seed) for seed in range(3)]
    terms = torch.stack([toy_term(model, x)[0] for x in inputs])
    with attached(model) as sync:
        assert sync.metrics() == {}
        for x in inputs:
            model(x)
            sync.apply(torch.zeros(())).backward()
        metrics = sync.metrics()
        assert set(metrics) == {"layersync_loss", "layersync_similarity"}
        close(metrics["layersync_loss"], terms.mean())
        close(metrics["layersync_similarity"], terms.mean() / -0.5)
        for value in metrics.values():
            assert isinstance(value, Tensor)
            assert (value.ndim, value.requires_grad, value.dtype) == (0, False, torch.float32)
        assert sync.metrics() == {}
        model(inputs[0])
        sync.apply(torch.zeros(()))
        close(sync.metrics()["layersync_loss"], terms[0])
        close(metrics["layersync_loss"], terms.mean())


# The device is never waited for.
class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket._qualified_op_name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("ratio", [False, True])
@pytest.mark.parametrize("case", ["dit", "flux references", "wan"])
def test_a_step_waits_for_nothing(case: str, ratio: bool) -> None:
    model, inputs = build(case)
    waits = ("aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::equal", "aten::is_nonzero")

    def step(sync: Attachment | None) -> Counter[str]:
        with Counting() as counting:
            loss = model(**inputs).sample.square().mean()
            if sync is not None:
                loss = sync.apply(loss, sample_weight=weight)
            loss.backward()
            if sync is not None:
                sync.metrics()
        return counting.calls

    weight = torch.ones(2)
    own = step(None)
    with attach(model, settings(1, 3, layersync_log_grad_ratio=ratio)) as sync:
        for _ in range(3):
            calls = step(sync)
            assert [calls[name] - own[name] for name in waits] == [0] * len(waits)


# Schedules.
def at(step: int, warmup: int, decay: int, cutoff: int) -> float:
    if cutoff and step >= cutoff:
        return 0
    if step < warmup:
        return step / warmup
    if decay:
        return (1 + math.cos(math.pi * min(1, (step - warmup) / decay))) / 2
    return 1


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize(
    ("warmup", "decay", "cutoff"), [(0, 0, 0), (4, 0, 0), (0, 5, 0), (3, 4, 0), (3, 6, 5), (0, 0, 2)]
)
def test_the_weight_follows_the_schedule(warmup: int, decay: int, cutoff: int, explicit: bool) -> None:
    model, x = toy(), toy_input()
    schedule = {
        "layersync_warmup_steps": warmup,
        "layersync_decay_steps": decay,
        "layersync_cutoff_step": cutoff,
    }
    full, _ = toy_term(model, x)
    with attached(model, **schedule) as sync:
        for step in range(10):
            model(x)
            loss = sync.apply(torch.ones(()), step=step) if explicit else sync.apply(torch.ones(()))
            close(loss, 1 + full * at(step, warmup, decay, cutoff))


@pytest.mark.parametrize("schedule", [{"layersync_cutoff_step": 2}, {"layersync_decay_steps": 2}])
def test_after_the_end_nothing_is_captured_and_the_main_loss_is_returned(schedule: dict[str, int]) -> None:
    model, x = toy(), toy_input()
    with attached(model, **schedule) as sync:
        for _ in range(2):
            model(x)
            sync.apply(torch.zeros(())).backward()
        sync.metrics()
        for _ in range(2):
            model(x)
            model(x)  # more forwards than steps are nobody's business any more
            assert not sync.forwards
            loss = torch.zeros(())
            assert sync.apply(loss) is loss
            assert float(sync.loss()) == 0
            with torch.no_grad():
                assert sync.apply(loss) is loss
        assert sync.metrics() == {}


@pytest.mark.parametrize("schedule", [{"layersync_cutoff_step": 3}, {"layersync_decay_steps": 3}])
def test_micro_batches_of_the_last_step_all_have_the_term(schedule: dict[str, int]) -> None:
    # Gradient accumulation: several calls with one optimiser step.
    model, x = toy(), toy_input()
    full, _ = toy_term(model, x)
    factor = 1 if "layersync_cutoff_step" in schedule else at(2, 0, 3, 0)
    with attached(model, **schedule) as sync:
        for _ in range(4):
            model(x)
            close(sync.apply(torch.zeros(()), step=2), full * factor)
        for _ in range(2):
            model(x)
            assert float(sync.apply(torch.zeros(()), step=3)) == 0


def test_a_schedule_that_starts_anew_says_why_its_first_forward_is_missing() -> None:
    model, x = toy(), toy_input()
    with attached(model, layersync_cutoff_step=2) as sync:
        model(x)
        sync.apply(torch.zeros(()), step=7)
        model(x)
        with pytest.raises(CaptureError, match="schedule"):
            sync.apply(torch.zeros(()), step=0)
        model(x)
        close(sync.apply(torch.zeros(()), step=0), toy_term(model, x)[0])


# Checkpoints.
def test_the_step_is_restored() -> None:
    model, x = toy(), toy_input()
    full, _ = toy_term(model, x)
    with attached(model, layersync_warmup_steps=10) as sync:
        for _ in range(4):
            model(x)
            sync.loss()
        state = copy.deepcopy(sync.state_dict())
    with attached(model, layersync_warmup_steps=10) as sync:
        sync.load_state_dict(state)
        model(x)
        close(sync.loss(), full * 0.4)
    with attached(model, layersync_cutoff_step=4) as sync:
        sync.load_state_dict(state)
        model(x)
        assert not sync.forwards
        assert float(sync.loss()) == 0


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"version": 2, "step": 1, "modules": {}},
        {"version": 1, "modules": {}},
        {"version": 1, "step": "1", "modules": {}},
        {"version": 1, "step": -1, "modules": {}},
        {"version": 1, "step": 1, "modules": {"crepa": {}}},
        {"version": 1, "step": 1, "modules": None},
        [1],
        None,
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(state: Any) -> None:
    model = toy()
    with attached(model, layersync_warmup_steps=10) as sync:
        before = sync.state_dict()
        with pytest.raises(ConfigError):
            sync.load_state_dict(state)
        assert sync.state_dict() == before


def test_an_adapter_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes an adapter such as BlockStackAdapter; got a str"):
        attach(toy(), {"layersync_enabled": True, "layersync_student_block": 1}, adapter="toy")  # type: ignore[arg-type]


def test_no_settings_at_all_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    attach(toy(), {"layersync_enabled": False})
    assert not caplog.messages
    attach(toy(), {"learning_rate": 1e-4})
    assert ["no layersync_* setting was given" in message for message in caplog.messages] == [True]
