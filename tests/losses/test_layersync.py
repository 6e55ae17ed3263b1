# Shapes: B batch, S tokens, D channels
"""LayerSync as a regularizer: its pairs, what it measures, and its advice."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from peft import FourierFTConfig, HRAConfig, IA3Config, LNTuningConfig, LoraConfig, VeraConfig, get_peft_model
from torch import Tensor, nn

from layersync_core import ConfigError, LayerSyncWarning, attach
from layersync_core.losses.alignment import centered_similarity
from tests.models import (
    TOY,
    Toy,
    attached,
    build,
    close,
    generated,
    mean_cosine,
    settings,
    states_by_hand,
    toy,
    toy_input,
    toy_states,
)


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


PEFT = {
    "LoRA": LoraConfig(target_modules=["inner"], init_lora_weights=False),
    "LoRA and its layers' biases": LoraConfig(target_modules=["inner"], bias="lora_only"),
    "LoRA and all biases": LoraConfig(target_modules=["inner"], bias="all"),
    "LoRA with a bias of its own": LoraConfig(target_modules=["inner"], lora_bias=True),
    "DoRA": LoraConfig(target_modules=["inner"], use_dora=True),
    "VeRA": VeraConfig(target_modules=["inner"], r=4),
    "IA3": IA3Config(target_modules=["inner"], feedforward_modules=[]),
    "FourierFT": FourierFTConfig(target_modules=["inner"], n_frequency=4),
    "layer norms": LNTuningConfig(target_modules=["inner"]),
    "HRA": HRAConfig(target_modules=["inner"]),
}


@pytest.mark.parametrize("kind", PEFT)
def test_whatever_peft_adds_is_told_of_the_authors_weight(kind: str) -> None:
    model = get_peft_model(toy(), PEFT[kind]).base_model.model
    said = steps(model, {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4})
    assert [ADVICE in line for line in said] == [True]


@pytest.mark.parametrize("trained", ["bias", "blocks.0", "norm"])
def test_a_part_of_the_models_own_weights_is_no_adapter(trained: str) -> None:
    model: Any = toy()
    model.blocks[0].norm = nn.LayerNorm(8)
    model.blocks[0].register_forward_hook(lambda module, args, output: module.norm(output))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    assert steps(model, {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}) == []


def test_a_pair_of_one_block_is_warned_about_once() -> None:
    (said,) = steps(toy(), settings(2, None))
    assert "block 2 of 4 (blocks.1)" in said
    assert "\n" not in said
