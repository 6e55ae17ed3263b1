"""What the term's gradient arrives at is judged by its graph, at every step, also where checkpoints hide it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersync_core import CaptureError
from layersync_core.capture import states
from tests.models import Outside, Toy, assert_same_gradients, attached, gradients, toy, toy_input, toy_term

NOTHING = r"block 2 of 4 \(blocks\.1\) depends on nothing trainable"


def frozen(but: str = "\0", model: Toy | None = None, **arguments: Any) -> Toy:
    """Return a model of which all is frozen but some; activations require grad, as trainers make them."""
    if model is None:
        model = toy(**arguments)
        model.embed.register_forward_hook(lambda module, args, output: output.requires_grad_())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(but in name)
    return model


def assert_trains(model: Toy, trained: nn.Module, expected: tuple[Tensor, dict[str, Tensor]] | None = None) -> None:
    with attached(model, 2, 4) as sync:
        for _ in range(2):
            model(toy_input())
            sync.loss().backward()
            found = gradients(trained)
            assert any(gradient.any() for gradient in found.values())
            if expected is not None:
                assert_same_gradients(found, expected[1])


def assert_refused(model: nn.Module) -> None:
    with attached(model, 2, 4) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match=NOTHING):
            sync.loss()


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("left", ["head", "blocks.2", "blocks.3"])
def test_blocks_that_are_frozen_after_the_first_step_are_an_error(left: str, reentrant: bool | None) -> None:
    model = frozen("", reentrant=reentrant)
    with attached(model, 2, 4) as sync:
        model(toy_input())
        sync.loss().backward()
        frozen(left, model)
        model(toy_input())
        with pytest.raises(CaptureError, match=f"{NOTHING}.* from here on: .* frozen now .*layersync_cutoff_step"):
            sync.loss()


@pytest.mark.parametrize("reentrant", [None, True])
def test_what_is_trained_may_change(reentrant: bool | None) -> None:
    model = frozen("blocks.1", reentrant=reentrant)
    with attached(model, 2, 4) as sync:
        for part in ("blocks.1", "blocks.0", "embed", "blocks.1.outer"):
            frozen(part, model)
            model.zero_grad(set_to_none=True)
            model(toy_input())
            sync.loss().backward()
            assert set(gradients(model)) == {n for n, _ in model.named_parameters() if part in n}


def test_a_head_behind_the_blocks_is_no_part_of_what_a_checkpoint_hides() -> None:
    assert_refused(frozen("head", reentrant=True))


class Checkpointed(Toy):
    """A model that checkpoints whatever ``call`` makes of a block's number."""

    call: Callable[[Any, int], Callable[..., Any]]

    def forward(self, x: Tensor) -> Tensor:
        state = self.embed(x)
        for index in range(len(self.blocks)):
            state = checkpoint(self.call(index), state, use_reentrant=True)
        return self.head(state)


class Holder:
    """A callable that isn't a module."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, state: Tensor) -> Any:
        return self.block(state)

    def run(self, state: Tensor) -> Any:
        return self.block(state)


def over_the_whole_model(model: Toy, index: int) -> Callable[..., Any]:
    return lambda state: model.blocks[index](state)


def nested(model: Toy, index: int) -> Callable[..., Any]:
    run = over_a_part(model, index)
    return lambda state: run(state)


def over_a_part(model: Toy, index: int) -> Callable[..., Any]:
    return partial(lambda block, state: block(state), model.blocks[index])


CALLS: dict[str, Callable[[Toy, int], Callable[..., Any]]] = {
    "method": lambda model, index: model.blocks[index].__call__,
    "closure over the model": over_the_whole_model,
    "partial": over_a_part,
    "closure over a partial": nested,
    "callable object": lambda model, index: Holder(model.blocks[index]),
    "method of an object": lambda model, index: Holder(model.blocks[index]).run,
    "another module": lambda model, index: nn.Sequential(model.blocks[index]),
    "default": lambda model, index: lambda state, block=model.blocks[index]: block(state),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("trained", "reached"), [("head", False), ("blocks.2", False), ("blocks.1", True)])
def test_whatever_a_checkpoint_calls_is_looked_into(call: str, trained: str, reached: bool) -> None:
    torch.manual_seed(0)
    model = Checkpointed()
    model.call = MethodType(CALLS[call], model)
    model.embed.register_forward_hook(lambda module, args, output: output.requires_grad_())
    frozen(trained, model)
    if reached:
        assert_trains(model, model, toy_term(model, toy_input(), 2, 4))
    else:
        assert_refused(model)


def hook_every_module(model: nn.Module) -> None:
    for module in model.modules():
        add_hook_to_module(module, ModelHook())


def test_hooks_of_accelerate_on_every_module_are_no_weights() -> None:
    model = frozen("head", reentrant=True)
    hook_every_module(model)
    assert_refused(model)


@pytest.mark.parametrize("hooks", ["before", "after"])
@pytest.mark.parametrize(("blocks", "reached"), [(slice(1, 2), True), (slice(2, 4), False)])
def test_lora_outside_the_model_beside_hooks_of_accelerate(blocks: slice, reached: bool, hooks: str) -> None:
    model = frozen(reentrant=True)
    if hooks == "before":
        hook_every_module(model)
    networks = nn.ModuleList(Outside(block.inner) for block in model.blocks[blocks])
    if hooks == "after":
        hook_every_module(model)
    if reached:
        assert_trains(model, networks)
        networks.requires_grad_(False)
    assert_refused(model)


def test_lora_outside_the_model_that_is_frozen_later_is_an_error() -> None:
    model = frozen(reentrant=True)
    networks = nn.ModuleList(Outside(block.inner) for block in model.blocks)
    with attached(model, 2, 4) as sync:
        model(toy_input())
        sync.loss().backward()
        networks[:2].requires_grad_(False)
        model(toy_input())
        with pytest.raises(CaptureError, match="from here on"):
            sync.loss()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch's own, while it compiles
def test_a_graph_compiled_as_a_whole_does_not_count_what_stands_behind_the_block() -> None:
    model = toy()
    frozen("head", model)
    with attached(model, 2, 4) as sync:
        torch.compile(model, backend="aot_eager", fullgraph=True)(toy_input().requires_grad_())
        with pytest.raises(CaptureError, match=NOTHING):
            sync.loss()


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_the_graph_is_searched_once_while_nothing_changes(
    reentrant: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[Any] = []
    find = states.find_way
    monkeypatch.setattr(states, "find_way", lambda *given: searches.append(given) or find(*given))
    model = frozen("blocks.0", reentrant=reentrant)
    with attached(model, 2, 4) as sync:
        for step in range(3):
            model(toy_input(tokens=5 + step))
            sync.loss().backward()
    assert len(searches) == 1
