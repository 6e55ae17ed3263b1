"""Compiled models: captured as they are, or refused."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_core import CaptureError, attach
from layersync_core.capture import compiling
from tests.capture.ways import SECOND
from tests.models import (
    TOY,
    assert_same_gradients,
    attached,
    build,
    generated,
    gradients,
    gradients_by_autograd,
    mean_cosine,
    settings,
    states_by_hand,
    toy,
    toy_input,
    toy_term,
)
from tests.since import since


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# torch, about tensors that its own tracing looks at.
_NOISE = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def compiles(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that compiles."""
    return _NOISE(pytest.mark.usefixtures("fresh_dynamo")(test))


def whole(model: Any) -> Any:
    return torch.compile(model, backend="aot_eager", fullgraph=True)


def in_place(model: Any) -> Any:
    model.compile(backend="aot_eager", fullgraph=True)
    return model


def block_wise(model: Any) -> Any:
    for block in model.blocks:
        block.compile(backend="aot_eager", fullgraph=True)
    return model


@compiles
@pytest.mark.parametrize(
    ("compiled", "compiled_first"), [(whole, False), (whole, True), (in_place, False), (block_wise, True)]
)
def test_attached_before_the_first_compiled_call(compiled: Callable[[Any], Any], compiled_first: bool) -> None:
    model, x = toy(), toy_input()
    expected, expected_gradients = toy_term(model, x)
    run = compiled(model) if compiled_first else None
    sync = attach(run if compiled_first else model, settings(), adapter=TOY)
    run = run if compiled_first else compiled(model)
    for step in range(4):
        if step == 2:
            torch._dynamo.config.error_on_recompile = True
        try:
            with torch.no_grad():
                run(toy_input(seed=1))
            run(x)
            with torch.no_grad():
                run(toy_input(seed=1))
            loss = sync.loss()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            assert_same_gradients(gradients(model), expected_gradients)
        finally:
            torch._dynamo.config.error_on_recompile = False
    sync.remove()


@compiles
@pytest.mark.parametrize(
    ("compiled", "grad"), [(whole, True), (whole, False), (in_place, False), (block_wise, True), (block_wise, False)]
)
def test_attached_after_the_first_compiled_call_is_right_or_refused(compiled: Callable[[Any], Any], grad: bool) -> None:
    model, x = toy(), toy_input()
    expected, expected_gradients = toy_term(model, x)
    run = compiled(model)
    with torch.set_grad_enabled(grad):
        run(x)
    with attach(run, settings(), adapter=TOY) as sync:
        for _ in range(2):
            run(x)
            try:
                loss = sync.loss()
            except CaptureError as error:
                assert "compiled" in str(error)  # noqa: PT017
                torch._dynamo.reset()  # what the error advises
                run(x)
                loss = sync.loss()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            assert_same_gradients(gradients(model), expected_gradients)


@compiles
def test_a_real_model_compiled_whole() -> None:
    model, inputs = build("flux references")
    model.transformer_blocks, model.single_transformer_blocks = (
        nn.ModuleList([stack[0]]) for stack in (model.transformer_blocks, model.single_transformer_blocks)
    )
    states = states_by_hand(model, inputs)
    expected = -0.5 * mean_cosine(states[0], states[1], generated(inputs))
    reference = gradients_by_autograd(expected, model)
    sync = attach(model, settings(1, 2))
    run = whole(model)
    for _ in range(2):
        run(**inputs)
        loss = sync.loss()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        loss.backward()
        assert_same_gradients(gradients(model), reference)
    sync.remove()


@compiles
@pytest.mark.parametrize("fullgraph", [False, True])
def test_further_forwards_of_a_compiled_model(fullgraph: bool) -> None:
    model, x = toy(), toy_input()
    expected = toy_term(model, x)[0]
    sync = attached(model)
    run = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)
    run(x)
    with sync.paused():
        run(toy_input(seed=1))
    torch.testing.assert_close(sync.loss(), expected, rtol=1e-5, atol=1e-6)
    run(x)
    # With fullgraph=True the compiler reports our error as its own, with the line of code that raises it.
    # That of torch 2.4 doesn't trace the hook, which then raises it itself.
    refused = (torch._dynamo.exc.Unsupported, CaptureError) if fullgraph else CaptureError
    with pytest.raises(refused, match=f"SECOND_FORWARD|{SECOND}" if fullgraph else SECOND):
        run(x)
    torch.testing.assert_close(sync.loss(), expected, rtol=1e-5, atol=1e-6)
    run(x)
    torch.testing.assert_close(sync.loss(), expected, rtol=1e-5, atol=1e-6)
    sync.remove()


# torch, about its own tracing of an autograd function.
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning")
@compiles
@since("torch", "2.5", "its compiler reports an error of another kind")
@pytest.mark.parametrize("ask", ["apply", "loss"])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_the_term_asked_for_in_a_compiled_function(fullgraph: bool, ask: str) -> None:
    model, x = toy(), toy_input()
    expected, expected_gradients = toy_term(model, x)
    with attached(model) as sync:

        def step(x: Any) -> Any:
            zero = 0 * model(x).sum()
            return sync.apply(zero) if ask == "apply" else zero + sync.loss()

        run = torch.compile(step, backend="aot_eager", fullgraph=fullgraph)
        if fullgraph:
            with pytest.raises(torch._dynamo.exc.Unsupported, match=r"call apply\(\) and loss\(\) outside"):
                run(x)
            run = step
        for _ in range(2):
            loss = run(x)
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            found = {name: grad for name, grad in gradients(model).items() if grad.any()}
            assert_same_gradients(found, expected_gradients)


# A store in a block that is compiled and checkpointed is a side effect in a region that backward runs again.
OPTION = "skip_fwd_side_effects_in_bwd_under_checkpoint"
has_the_option = pytest.mark.skipif(
    not hasattr(torch._dynamo.config, OPTION), reason=f"torch {torch.__version__} refuses such stores itself"
)


@has_the_option
@compiles
@pytest.mark.parametrize("reentrant", [False, True])
def test_compiled_and_checkpointed(reentrant: bool) -> None:
    model, x = toy(reentrant=reentrant), toy_input()
    expected, expected_gradients = toy_term(model, x)
    with attached(model) as sync:
        run = whole(model)
        for _ in range(2):
            output = run(x)
            loss = sync.loss()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            (loss + 0 * output.sum()).backward()  # backward recomputes every block
            found = {name: grad for name, grad in gradients(model).items() if grad.any()}
            assert_same_gradients(found, expected_gradients)


@has_the_option
@compiles
def test_a_torch_that_cannot_compile_hooked_checkpoints_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_OPTIONS", {"an_option_that_this_torch_does_not_have": True})
    model = toy(reentrant=False)
    # Whatever another test left attached has set the option.
    clean = torch._dynamo.config.patch({OPTION: False})
    with clean, attached(model), pytest.raises(torch._dynamo.exc.Unsupported, match="side effect"):
        whole(model)(toy_input())


class Around(nn.Module):
    """A compiled module in a block's place, as trainers put there to checkpoint it; its graph has the block inside."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        self.compile(backend="aot_eager", fullgraph=True)

    def forward(self, state: Tensor) -> Tensor:
        return self.block(state)


@since("torch", "2.5", "its compiler cannot enter a hooked block from a module of another's")
@compiles
@pytest.mark.parametrize("reentrant", [None, False])
def test_blocks_inside_of_compiled_modules_of_one_class(reentrant: bool | None) -> None:
    model, x = toy(depth=6, reentrant=reentrant), toy_input()
    # The third and fourth block have no hook, and the fifth is the teacher.
    expected, expected_gradients = toy_term(model, x, 2, 5)
    with attach(model, settings(2, 5), adapter=TOY) as sync:
        model.blocks = nn.ModuleList(Around(block) for block in model.blocks)
        for _ in range(2):
            model(x)
            loss = sync.loss()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            found = {name.replace(".block.", "."): grad for name, grad in gradients(model).items()}
            assert_same_gradients(found, expected_gradients)


@has_the_option
@pytest.mark.parametrize("before", [False, True])
def test_the_compilers_options_while_anything_is_attached(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_users", 0)
    monkeypatch.setattr(compiling, "_before", {})
    options = {OPTION: True, "skip_nnmodule_hook_guards": False}
    with torch._dynamo.config.patch(dict.fromkeys(options, before)):
        first, second = attached(toy()), attached(toy())
        first.remove()
        first.remove()
        assert {name: getattr(torch._dynamo.config, name) for name in options} == options
        second.remove()
        assert {getattr(torch._dynamo.config, name) for name in options} == {before}
        forgotten, third = attached(toy()), attached(toy())
        third.remove()
        assert {name: getattr(torch._dynamo.config, name) for name in options} == options
        del forgotten
        gc.collect()
        assert {getattr(torch._dynamo.config, name) for name in options} == {before}
