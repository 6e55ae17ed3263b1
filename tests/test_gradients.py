# Shapes: B batch, S tokens, D channels
"""LayerSync's gradients on the real families: equal to those of a forward written by hand, whatever recomputes it."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from layersync_core import attach
from layersync_core.errors import LayerSyncWarning
from tests.models import (
    CASES,
    assert_same_gradients,
    build,
    generated,
    gradients,
    gradients_by_autograd,
    mean_cosine,
    settings,
    states_by_hand,
)

WEIGHT = 0.3


def main_loss(output: Any) -> Tensor:
    sample = getattr(output, "sample", output)
    return sample.square().mean()


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_every_pair_are_those_of_a_forward_by_hand(case: str) -> None:
    model, inputs = build(case)
    untouched = copy.deepcopy(model)
    states, keep = states_by_hand(untouched, inputs), generated(inputs)
    for student, teacher in permutations(range(len(states)), 2):
        expected = -WEIGHT * mean_cosine(states[student], states[teacher], keep)
        with attach(model, settings(student + 1, teacher + 1, WEIGHT)) as sync:
            model(**inputs)
            loss = sync.loss()
            loss.backward()
            later = {block.path for block in sync.blocks[student + 1 :]}
            earlier = {block.path for block in sync.blocks[: student + 1]}
        found = gradients(model)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        assert_same_gradients(found, gradients_by_autograd(expected, untouched))
        owners = {name: path for name in found for path in (*earlier, *later) if name.startswith(f"{path}.")}
        assert not later & set(owners.values()), "a parameter after the student got a gradient"
        assert {path for name, path in owners.items() if found[name].any()} == earlier
        assert not [name for name in found if name.startswith(("proj_out", "norm_out", "scale_shift_table"))]


@pytest.mark.parametrize(("tokens", "counted"), [("target", 16), ("all", 48)])
def test_references_count_only_when_asked(tokens: str, counted: int) -> None:
    model, inputs = build("flux references")
    states, keep = states_by_hand(model, inputs), generated(inputs)
    assert keep is not None
    assert (int(keep.sum()), len(keep)) == (16, 48)
    expected, other = (mean_cosine(states[1], states[4], mask) for mask in (keep, None))
    if tokens == "all":
        expected, other = other, expected
    assert abs(expected - other) > 1e-3, "the test cannot distinguish the two"
    with attach(model, settings(2, 5, layersync_tokens=tokens)) as sync:
        model(**inputs)
        torch.testing.assert_close(sync.loss(), -0.5 * expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", [1, 5, 16])
@pytest.mark.parametrize("case", ["flux", "flux references"])
def test_the_number_of_text_tokens_does_not_matter(case: str, text: int) -> None:
    model, inputs = build(case)
    inputs["encoder_hidden_states"] = torch.randn(2, text, 12)
    inputs["txt_ids"] = torch.zeros(text, 3)
    states = states_by_hand(model, inputs)
    for student, teacher in [(0, 1), (1, 2), (3, 5)]:
        with attach(model, settings(student + 1, teacher + 1, 1)) as sync:
            model(**inputs)
            expected = -mean_cosine(states[student], states[teacher], generated(inputs))
            torch.testing.assert_close(sync.loss(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["dit", "flux references", "wan vace"])
def test_apply_adds_the_term_to_the_main_loss(case: str) -> None:
    model, inputs = build(case)
    untouched = copy.deepcopy(model)
    states = states_by_hand(untouched, inputs)
    term = -0.5 * mean_cosine(states[0], states[2], generated(inputs))
    expected = main_loss(untouched(**inputs)) + term
    with attach(model, settings()) as sync:
        loss = sync.apply(main_loss(model(**inputs)))
        loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, untouched))


def test_a_pair_of_one_block_has_a_constant_loss_and_no_gradient() -> None:
    model, inputs = build("dit")
    with pytest.warns(LayerSyncWarning, match="same block, block 2 of 6") as caught:
        sync = attach(model, settings(2, None, 0.25))
    assert len(caught) == 1
    model(**inputs)
    loss = sync.loss()
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(-0.25), rtol=0, atol=1e-6)
    found = gradients(model)
    assert found, "differentiable all the same"
    assert all(float(grad.abs().max()) < 1e-6 for grad in found.values())


# How gradient checkpointing is switched on, and whether before or after attaching.
def _reentrant(model: Any) -> None:
    model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=True))


def _not_reentrant(model: Any) -> None:
    model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))


ROUTES: dict[str, tuple[Callable[[Any], None], bool]] = {
    "not re-entrant": (_not_reentrant, True),
    "early stop off": (_not_reentrant, False),
    "re-entrant": (_reentrant, True),
}


@contextlib.contextmanager
def _watched(modules: list[nn.Module]) -> Iterator[tuple[list[nn.Module], list[Any]]]:
    """Collect the modules' runs, including repeated ones, and weak references to their outputs."""
    runs: list[nn.Module] = []
    seen: list[Any] = []

    def watch(module: nn.Module, args: Any, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        seen.extend(weakref.ref(tensor) for tensor in tensors)

    handles = [module.register_forward_hook(watch) for module in modules]
    # Its own hook: an early stop of a recomputation leaves the block before it returns.
    handles += [module.register_forward_pre_hook(lambda module, args: runs.append(module)) for module in modules]
    yield runs, seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("late", [False, True], ids=["before", "after attaching"])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", ["dit", "flux references", "wan", "wan animate"])
def test_checkpointing_changes_no_gradient_and_keeps_nothing(case: str, route: str, late: bool) -> None:
    model, inputs = build(case, batch=1)
    untouched = copy.deepcopy(model)
    term = -0.5 * mean_cosine(*states_by_hand(untouched, inputs)[0:3:2], generated(inputs))
    expected = gradients_by_autograd(main_loss(untouched(**inputs)) + term, untouched)
    switch_on, early_stop = ROUTES[route]
    if not late:
        switch_on(model)
    with attach(model, settings()) as sync:
        if late:
            switch_on(model)
        blocks = [model.get_submodule(block.path) for block in sync.blocks]
        for _ in range(2):
            with _watched(blocks) as (runs, seen), set_checkpoint_early_stop(early_stop):
                loss = sync.apply(main_loss(model(**inputs)))
                torch.testing.assert_close(sync.metrics()["layersync_loss"], term.detach(), rtol=1e-5, atol=1e-6)
                loss.backward()
                del loss
            assert_same_gradients(gradients(model), expected)
            gc.collect()
            assert len(runs) == 2 * len(blocks), "every block is recomputed once"
            assert not [reference() for reference in seen if reference() is not None], "states outlive their step"


@pytest.mark.parametrize("route", ["not re-entrant", "re-entrant"])
@pytest.mark.parametrize("case", ["dit", "flux", "wan"])
def test_the_term_alone_reaches_nothing_after_the_student_under_checkpointing(case: str, route: str) -> None:
    model, inputs = build(case)
    untouched = copy.deepcopy(model)
    expected = -0.5 * mean_cosine(*states_by_hand(untouched, inputs)[2:4], generated(inputs))
    ROUTES[route][0](model)
    with attach(model, settings(3, 4)) as sync:
        model(**inputs)
        sync.loss().backward()
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, untouched))


# torch, about Flux's fp32 norm weights under autocast.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
@pytest.mark.parametrize("case", ["dit", "flux references", "wan"])
def test_bf16_autocast_trains_on_fp32_sums(case: str) -> None:
    model, inputs = build(case)
    states = states_by_hand(model, inputs)
    with attach(model, settings(1, 3, 1)) as sync:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**inputs)
            loss = sync.loss()
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, -mean_cosine(states[0], states[2], generated(inputs)), rtol=0, atol=0.02)
        loss.backward()
    assert gradients(model)


@pytest.mark.parametrize("case", ["dit", "flux", "wan"])
def test_a_bf16_model_gets_bf16_gradients_and_an_fp32_loss(case: str) -> None:
    model, inputs = build(case)
    states = states_by_hand(model, inputs)
    model.to(torch.bfloat16)
    floats = {key: value.bfloat16() for key, value in inputs.items() if value.is_floating_point() and "ids" not in key}
    with attach(model, settings(1, 3, 1)) as sync:
        output = model(**{**inputs, **floats})
        main = main_loss(output)
        loss = sync.apply(main)
        assert (main.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
        metrics = sync.metrics()
        exact = mean_cosine(states[0], states[2], generated(inputs)).detach()
        torch.testing.assert_close(metrics["layersync_similarity"], exact, rtol=0, atol=0.03)
        assert metrics["layersync_similarity"].dtype == torch.float32
        loss.backward()
    assert {grad.dtype for grad in gradients(model).values()} == {torch.bfloat16}
