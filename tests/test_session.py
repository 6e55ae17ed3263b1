# Shapes: B batch, S tokens, D channels
"""What an attachment promises: attach and remove, metrics, schedules, checkpoints, and no wait for the device."""

from __future__ import annotations

import copy
import math
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from layersync_core import Attachment, CaptureError, ConfigError, LayerSyncWarning, attach
from layersync_core.losses.alignment import centered_similarity
from tests.models import (
    CASES,
    TOY,
    Toy,
    build,
    generated,
    hooks_on,
    mean_cosine,
    settings,
    states_by_hand,
    toy,
    toy_input,
    toy_states,
    toy_term,
)


def attached(model: nn.Module, student: int | None = 1, teacher: int | None = 3, **more: Any) -> Attachment:
    return attach(model, settings(student, teacher, **more), adapter=TOY)


def close(found: Tensor, expected: Tensor | float, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=tolerance, atol=1e-6)


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


# The main loss, and what goes with it.
@pytest.mark.parametrize(
    "wrong",
    [
        0.5,
        None,
        torch.ones(2, requires_grad=True),
        torch.ones(1),
        torch.tensor(1),
        torch.tensor(True),
        torch.tensor(1j),
    ],
)
def test_a_main_loss_that_is_no_scalar_tensor_is_refused(wrong: Any) -> None:
    model = toy()
    with attached(model) as sync:
        model(toy_input())
        with pytest.raises(ConfigError, match="scalar tensor"):
            sync.apply(wrong)
        model(toy_input())  # a program that catches the error goes on
        sync.apply(torch.ones(()))


@pytest.mark.parametrize("step", [-1, 0.5, "3", True, False, 1.0, torch.tensor(1.0), torch.tensor(True)])
def test_a_step_that_is_no_count_is_refused(step: Any) -> None:
    model = toy()
    with attached(model) as sync:
        for ask in (lambda: sync.apply(torch.ones(()), step=step), lambda: sync.loss(step=step)):
            model(toy_input())
            with pytest.raises(ConfigError, match="a whole number from 0"):
                ask()
        assert sync.state_dict()["step"] == 0
        for good in (0, np.int64(3), torch.tensor(4)):
            model(toy_input())
            sync.apply(torch.ones(()), step=good)


WRONG_WEIGHTS = {
    "list": [1.0, 1.0],
    "number": 1.0,
    "numpy": np.ones(2),
    "scalar": torch.tensor(2.0),
    "column": torch.ones(2, 1),
    "row": torch.ones(1, 2),
    "one for all": torch.ones(1),
    "three": torch.ones(3),
    "complex": torch.ones(2, dtype=torch.complex64),
    "negative": torch.tensor([1.0, -1.0]),
    "nan": torch.tensor([1.0, float("nan")]),
    "infinite": torch.tensor([float("inf"), 1.0]),
}


@pytest.mark.parametrize("weight", WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS.keys())
@pytest.mark.parametrize("regularizer", ["layersync", "crepa"])
def test_sample_weights_that_are_none_are_refused_for_every_regularizer(regularizer: str, weight: Any) -> None:
    model = toy()
    crepa = {"crepa_enabled": True, "crepa_block_index": 0, "crepa_teacher_block_index": 2}
    config = settings(1, 3) if regularizer == "layersync" else crepa | {"crepa_feature_source": "backbone"}
    with attach(model, config, adapter=TOY) as sync:
        model(toy_input())
        with pytest.raises(ConfigError, match="sample_weight"):
            sync.apply(torch.ones(()), sample_weight=weight)
        assert sync.metrics() == {}
        model(toy_input())
        sync.apply(torch.ones(()))


@pytest.mark.parametrize(
    "weight", [torch.tensor([2, 0]), torch.tensor([True, False]), torch.tensor([1.5, 0.0], requires_grad=True)]
)
def test_sample_weights_of_other_kinds(weight: Tensor) -> None:
    model, x = toy(), toy_input()
    with attached(model) as sync:
        model(x)
        loss = sync.loss(sample_weight=weight)
        model(x)
        close(loss, sync.loss(sample_weight=weight.detach().double()))
        loss.backward()
    assert weight.grad is None


def test_apply_without_grad_is_refused() -> None:
    model = toy()
    with attached(model) as sync:
        model(toy_input())
        with torch.no_grad(), pytest.raises(CaptureError, match="no_grad"):
            sync.apply(torch.zeros(()))
        model(toy_input())
        sync.loss()


def test_sample_weights_scale_the_term_and_not_the_similarity() -> None:
    model, x = toy(), toy_input(batch=3)
    weight = torch.tensor([1.0, 0.0, 2.5])
    states = toy_states(model, x)
    each_B = nn.functional.cosine_similarity(states[0], states[2], dim=-1).mean(dim=1)
    with attached(model) as sync:
        model(x)
        loss = sync.apply(torch.ones(()), sample_weight=weight)
        close(loss, 1 - 0.5 * (each_B * weight).mean().detach())
        metrics = sync.metrics()
        close(metrics["layersync_similarity"], each_B.mean().detach())
        close(metrics["layersync_loss"], loss.detach() - 1)
        model(x)
        with pytest.raises(ConfigError, match="sample_weight"):
            sync.apply(torch.ones(()), sample_weight=weight[:2])


def test_student_and_teacher_of_different_shape_are_named() -> None:
    from layersync_core import BlockStackAdapter

    class Narrowing(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.blocks[2] = nn.Linear(8, 4)
            self.blocks[3] = nn.Linear(4, 8)

    model = Narrowing()
    unknown_width = BlockStackAdapter(family="toy", model_classes="Narrowing", stacks="blocks")
    with attach(model, settings(1, 3), adapter=unknown_width) as sync:
        model(toy_input())
        both = r"block 1 of 4 \(blocks\.0\).*\(2, 5, 8\).*block 3 of 4 \(blocks\.2\).*\(2, 5, 4\)"
        with pytest.raises(ConfigError, match=both):
            sync.loss()


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


def test_several_pairs_all_count() -> None:
    model, x = toy(), toy_input()
    states = toy_states(model, x)
    cosines = [mean_cosine(states[0], states[2]).detach(), mean_cosine(states[1], states[3]).detach()]
    pairs = {"layersync_enabled": True, "layersync_lambda": 0.5, "layersync_pairs": [[1, 3], [2, 4, 0.1]]}
    with attach(model, pairs, adapter=TOY) as sync:
        model(x)
        loss = sync.loss()
        close(loss, -0.5 * cosines[0] - 0.1 * cosines[1])
        loss.backward()
        assert model.blocks[1].inner.weight.grad is not None
        assert model.blocks[2].inner.weight.grad is None
        metrics = sync.metrics()
        assert set(metrics) == {
            "layersync_loss",
            "layersync_similarity",
            "layersync_similarity/1-3",
            "layersync_similarity/2-4",
        }
        close(metrics["layersync_similarity/1-3"], cosines[0])
        close(metrics["layersync_similarity/2-4"], cosines[1])
        close(metrics["layersync_similarity"], sum(cosines) / 2)
        assert (sync.student, sync.teacher) == (sync.blocks[0], sync.blocks[2])


def test_the_centred_similarity_is_that_of_all_pairs() -> None:
    model, x = toy(), toy_input()
    states = toy_states(model, x)
    pairs = {"layersync_enabled": True, "layersync_pairs": [[1, 3], [2, 4]], "layersync_log_grad_ratio": True}
    with attach(model, pairs, adapter=TOY) as sync:
        model(x)
        sync.loss()
        expected = torch.stack([centered_similarity(states[0], states[2]), centered_similarity(states[1], states[3])])
        close(sync.metrics()["layersync_similarity_centered"], expected.mean())


@pytest.mark.parametrize("case", ["dit", "flux references", "wan animate"])
def test_the_gradient_ratio_is_that_of_two_separate_backwards(case: str) -> None:
    model, inputs = build(case)
    keep = generated(inputs)
    caught: list[Tensor] = []
    block = attach(model, settings(2, 4)).student
    assert block is not None
    again = copy.deepcopy(model)
    handle = again.get_submodule(block.path).register_forward_hook(lambda m, a, output: caught.append(output))
    output = again(**inputs).sample
    handle.remove()
    student = caught[0][1] if isinstance(caught[0], tuple) else caught[0]
    (main,) = torch.autograd.grad(output.square().mean(), student, retain_graph=True)
    teacher = states_by_hand(again, inputs)[3]
    (ours,) = torch.autograd.grad(-0.5 * mean_cosine(student, teacher, keep), student)

    model = copy.deepcopy(again)
    with attach(model, settings(2, 4, layersync_log_grad_ratio=True)) as sync:
        for scale in (1.0, 1024.0):  # a loss scaler cancels out
            loss = sync.apply(model(**inputs).sample.square().mean())
            assert "layersync_grad_ratio" not in sync.metrics(), "known in backward only"
            (loss * scale).backward()
            metrics = sync.metrics()
            assert set(metrics) == {"layersync_grad_ratio"}
            close(metrics["layersync_grad_ratio"], ours.norm() / main.norm(), 1e-4)
        loss = sync.apply(model(**inputs).sample.square().mean())
        states = states_by_hand(again, inputs)
        student_BSD, teacher_BSD = (states[k] if keep is None else states[k][:, keep] for k in (1, 3))
        centred = sync.metrics()["layersync_similarity_centered"]
        close(centred, centered_similarity(student_BSD, teacher_BSD), 1e-4)


def test_measuring_the_gradient_changes_nothing() -> None:
    found = []
    for measure in (False, True):
        model, x = toy(), toy_input()
        with attached(model, layersync_log_grad_ratio=measure) as sync:
            sync.apply(model(x).square().mean()).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for plain, measured in zip(*found, strict=True):
        torch.testing.assert_close(plain, measured)


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
            assert sync._capture._pass is None  # type: ignore[union-attr]
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
        assert sync._capture._pass is None  # type: ignore[union-attr]
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


# Advice.
ADVICE = "a hundred times"


def only_adapters_train(model: Toy) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.blocks[0].register_parameter("lora_A", nn.Parameter(torch.zeros(8)))
    block: Any = model.blocks[0]
    block.register_forward_hook(lambda module, args, output: output + module.lora_A)


def steps(model: nn.Module, given: dict[str, Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with attach(model, given, adapter=TOY) as sync:
            for _ in range(3):
                model(toy_input())
                sync.loss()
    assert all(issubclass(warning.category, LayerSyncWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


def test_the_papers_weight_for_adapter_weights_is_advised_against_once() -> None:
    model = toy()
    only_adapters_train(model)
    enabled = {"layersync_enabled": True}
    single = {**enabled, "layersync_student_block": 2, "layersync_teacher_block": 4}
    (said,) = steps(model, single)
    assert ADVICE in said
    assert "\n" not in said
    (said,) = steps(model, {**enabled, "layersync_pairs": [[2, 4], [2, 3, 0.1]]})
    assert ADVICE in said
    assert steps(model, {**enabled, "layersync_pairs": [[2, 4, 0.002], [2, 3, 0.1]]}) == []
    assert steps(model, {**single, "layersync_lambda": 0.2}) == []
    assert steps(model, {**single, "layersync_preset": "lora"}) == []
    assert steps(model, {**single, "layersync_preset": "paper"}) == []
    model.requires_grad_(True)
    assert steps(model, single) == []


def test_a_pair_of_one_block_is_warned_about_once() -> None:
    (said,) = steps(toy(), settings(2, None))
    assert "block 2 of 4 (blocks.1)" in said
    assert "\n" not in said


def test_an_adapter_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes an adapter such as BlockStackAdapter; got a str"):
        attach(toy(), {"layersync_enabled": True, "layersync_student_block": 1}, adapter="toy")  # type: ignore[arg-type]
