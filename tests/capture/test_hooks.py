"""One training forward per step, whatever else runs and however it is run; it never silently does nothing."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from layersync_core import (
    Attachment,
    CaptureError,
    HiddenStateBuffer,
    attach,
    get_adapter,
    only_forward,
)
from tests.capture.ways import SECOND, WAYS, block_by_block, call
from tests.models import (
    Toy,
    assert_same_gradients,
    attached,
    build,
    generated,
    gradients,
    mean_cosine,
    settings,
    states_by_hand,
    toy,
    toy_input,
    toy_term,
)
from tests.run.conftest import launch as launch
from tests.since import since


# Forwards that must leave the main pass alone.
def without_grad(model: Toy, sync: Attachment, run: Callable[..., Tensor], x: Tensor) -> None:
    with torch.no_grad():
        run(model, x)


def in_inference_mode(model: Toy, sync: Attachment, run: Callable[..., Tensor], x: Tensor) -> None:
    with torch.inference_mode():
        run(model, x)


def while_paused(model: Toy, sync: Attachment, run: Callable[..., Tensor], x: Tensor) -> None:
    with sync.paused():
        run(model, x).sum()


def of_a_copy(model: Toy, sync: Attachment, run: Callable[..., Tensor], x: Tensor) -> None:
    copied = copy.deepcopy(model)
    run(copied, x).sum().backward()


def that_raises_without_grad(model: Toy, sync: Attachment, run: Callable[..., Tensor], x: Tensor) -> None:
    model.blocks[1].fails = True
    with torch.no_grad(), pytest.raises(ArithmeticError):
        run(model, x)
    model.blocks[1].fails = False


def that_raises(model: Toy, sync: Attachment, run: Callable[..., Tensor], x: Tensor) -> None:
    model.blocks[1].fails = True
    with pytest.raises(ArithmeticError):
        run(model, x)
    model.blocks[1].fails = False


OTHERS = [without_grad, in_inference_mode, while_paused, of_a_copy, that_raises_without_grad]


@pytest.mark.parametrize("other_tokens", [5, 9])
@pytest.mark.parametrize("other_run", WAYS)
@pytest.mark.parametrize("other", [*OTHERS, that_raises])
@pytest.mark.parametrize("run", WAYS)
def test_other_forwards_leave_the_main_pass_alone(
    run: Callable[..., Tensor], other: Callable[..., None], other_run: Callable[..., Tensor], other_tokens: int
) -> None:
    model, x = toy(), toy_input()
    expected, expected_gradients = toy_term(model, x)
    disturb = partial(other, model, run=other_run, x=toy_input(batch=3, tokens=other_tokens, seed=1))
    with attached(model) as sync:
        for _ in range(2):
            disturb(sync=sync)
            run(model, x)
            if other is not that_raises:  # with gradients it is a second training forward, and refused
                disturb(sync=sync)
            loss = sync.loss()
            disturb(sync=sync)
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            assert_same_gradients(gradients(model), expected_gradients)
            disturb(sync=sync)


@pytest.mark.parametrize("use", [Attachment.loss, lambda sync: sync.apply(torch.zeros(()))], ids=["loss", "apply"])
def test_states_are_used_once(use: Callable[[Attachment], Tensor]) -> None:
    model = toy()
    with attached(model) as sync:
        for _ in range(2):
            with pytest.raises(CaptureError, match="no training forward was captured since the last step"):
                use(sync)
            model(toy_input())
            use(sync)
            with pytest.raises(CaptureError, match="no training forward was captured since the last step"):
                use(sync)


@pytest.mark.parametrize("second", WAYS)
@pytest.mark.parametrize("first", WAYS)
def test_two_training_forwards_are_refused(first: Callable[..., Tensor], second: Callable[..., Tensor]) -> None:
    model, x = toy(), toy_input()
    with attached(model) as sync:
        first(model, x)
        with pytest.raises(CaptureError, match=SECOND):
            second(model, toy_input(seed=1))
        # The first one is still there for who knows that it was meant, and the next step is clean.
        torch.testing.assert_close(sync.loss(), toy_term(model, x)[0], rtol=1e-5, atol=1e-6)
        second(model, x)
        torch.testing.assert_close(sync.loss(), toy_term(model, x)[0], rtol=1e-5, atol=1e-6)


def test_a_second_forward_that_raises_leaves_the_first() -> None:
    model, x = toy(), toy_input()
    with attached(model) as sync:
        model(x)
        model.blocks[0].fails = True
        with pytest.raises((CaptureError, ArithmeticError)):
            model(x)
        model.blocks[0].fails = False
        torch.testing.assert_close(sync.loss(), toy_term(model, x)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("failing", range(4))
def test_a_forward_that_raised_is_never_used(failing: int) -> None:
    model = toy()
    with attached(model) as sync:
        model.blocks[failing].fails = True
        with pytest.raises(ArithmeticError):
            model(toy_input())
        with pytest.raises(CaptureError, match="no training forward"):
            sync.loss()
        with pytest.raises(ArithmeticError):
            model(toy_input())
        model.blocks[failing].fails = False
        model(toy_input())
        torch.testing.assert_close(sync.loss(), toy_term(model, toy_input())[0], rtol=1e-5, atol=1e-6)


def test_paused_may_be_nested_and_ends_with_an_error() -> None:
    model, x = toy(), toy_input()
    with attached(model) as sync:
        with sync.paused():
            with pytest.raises(ArithmeticError), sync.paused():
                raise ArithmeticError
            model(x)
        with pytest.raises(CaptureError, match=re.escape("inside paused()")):
            sync.loss()
        model(x)
        sync.loss()


# Nothing captured: the error names the reason.
def test_no_forward_at_all_is_named() -> None:
    with attached(toy()) as sync, pytest.raises(CaptureError, match="the attached model did not run"):
        sync.loss()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("run", WAYS)
def test_a_main_forward_without_grad_is_named(run: Callable[..., Tensor], mode: Callable[[], Any]) -> None:
    model = toy()
    with attached(model) as sync:
        with mode():
            run(model, toy_input())
        with pytest.raises(CaptureError, match=re.escape("torch.no_grad()")):
            sync.loss()


def test_training_another_model_is_named() -> None:
    model, other = toy(), toy()
    with attached(model) as sync:
        other(toy_input())
        with pytest.raises(CaptureError, match="attach to the model that is trained"):
            sync.loss()


def test_an_older_reason_is_not_given_for_a_newer_failure() -> None:
    model = toy()
    with attached(model) as sync:
        with torch.no_grad():
            model(toy_input())
        model(toy_input())
        sync.loss()
        with pytest.raises(CaptureError, match="did not run"):
            sync.loss()


def test_a_block_that_does_not_run_is_named() -> None:
    model = toy()
    first, second, _, last = model.blocks
    model.forward = lambda x: model.head(last(second(first(model.embed(x)))))  # type: ignore[method-assign]
    with attached(model) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match="block 3 did not run in the last training forward: it was skipped"):
            sync.loss()


def test_a_block_that_runs_twice_is_refused() -> None:
    model = toy()
    model.blocks[1] = model.blocks[2]
    with attached(model) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match="more than once"):
            sync.loss()


# Copies and pickles.
def _pickled(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def _saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, _pickled, _saved])
def test_a_duplicate_of_an_attached_model_works_alone(duplicate: Callable[[Any], Any]) -> None:
    model, x = toy(), toy_input()
    with attached(model) as sync:
        model(x)
        other = duplicate(model)
        if duplicate is not copy.copy:  # which shares its blocks with the model, and so is the model
            torch.testing.assert_close(other(toy_input(seed=1)), toy_model_output(model, toy_input(seed=1)))
            with attached(other) as theirs:
                other(toy_input(seed=1))
                torch.testing.assert_close(theirs.loss(), toy_term(model, toy_input(seed=1))[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sync.loss(), toy_term(model, x)[0], rtol=1e-5, atol=1e-6)


def toy_model_output(model: Toy, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def test_a_real_model_is_copied_and_saved_while_attached() -> None:
    model, inputs = build("dit")
    with attach(model, settings()) as sync:
        model(**inputs)
        average = copy.deepcopy(model)
        with torch.no_grad():
            average(**inputs)
        average(**inputs).sample.sum().backward()
        _pickled(model)
        assert sync.loss().item() == pytest.approx(-0.5 * mean_cosine(*states_by_hand(average, inputs)[0:3:2]).item())


_ELSEWHERE = """
import sys, torch, warnings
warnings.simplefilter("ignore")
for name in [name for name in sys.modules if "layersync" in name]:
    del sys.modules[name]
sys.modules["layersync_core"] = None
model, inputs = torch.load(sys.argv[1], weights_only=False)
output = model(**inputs).sample
output.sum().backward()
compiled = torch.compile(model, backend="eager", fullgraph=True)
print(float(output.detach().double().sum()), float(compiled(**inputs).sample.detach().double().sum()))
"""


@since("torch", "2.5", "its compiler refuses what is loaded in a hook's place")
@pytest.mark.parametrize("launched", [False, True])
def test_a_model_that_was_saved_while_attached_loads_without_this_package(
    launched: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if launched:
        request.getfixturevalue("launch")()
    model, inputs = build("dit")
    expected = float(model(**inputs).sample.detach().double().sum())
    sync = None if launched else attach(model, settings())
    if launched:
        torch.optim.SGD(model.parameters())
    torch.save((model, inputs), tmp_path / "model.pt")
    done = subprocess.run([sys.executable, "-c", _ELSEWHERE, tmp_path / "model.pt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [float(word) for word in done.stdout.split()] == pytest.approx([expected] * 2, rel=1e-4)
    if sync is not None:
        sync.remove()


@pytest.mark.parametrize("case", ["dit", "wan", "wan vace"])
def test_blocks_driven_by_hand_without_references_are_used(case: str) -> None:
    model, inputs = build(case)
    expected = -0.5 * mean_cosine(*states_by_hand(model, inputs)[0:3:2])
    with attach(model, settings()) as sync:
        states_by_hand(model, inputs)
        with torch.no_grad():
            model(**build(case, batch=3)[1])
            states_by_hand(model, build(case, batch=1)[1])
        torch.testing.assert_close(sync.loss(), expected, rtol=1e-5, atol=1e-6)


def test_checkpointed_blocks_driven_by_hand() -> None:
    model, x = toy(), toy_input()
    expected, expected_gradients = toy_term(model, x)
    with attached(model) as sync:
        for _ in range(2):
            state = model.embed(x)
            for block in model.blocks:
                state = checkpoint(block, state, use_reentrant=False)
            loss = sync.loss() + 0 * state.sum()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            found = {name: grad for name, grad in gradients(model).items() if grad.any()}
            assert_same_gradients(found, expected_gradients)


def test_reentrant_checkpoints_driven_by_hand_are_refused_or_right() -> None:
    # They hide that they train: the block runs under no_grad.
    model, x = toy(), toy_input()
    with attached(model) as sync:
        state = model.embed(x)
        for block in model.blocks:
            state = checkpoint(block, state, use_reentrant=True)
        with pytest.raises(CaptureError):
            sync.loss()


@pytest.mark.parametrize("run", [call, block_by_block])
@pytest.mark.parametrize("early_stop", [False, True])
def test_a_backward_before_the_states_are_used_recomputes_nothing_into_them(
    run: Callable[..., Tensor], early_stop: bool
) -> None:
    with set_checkpoint_early_stop(early_stop):
        model, x = toy(reentrant=False if run is call else None), toy_input()
        expected, expected_gradients = toy_term(model, x)
        with attached(model) as sync:
            if run is call:
                output = model(x)
            else:
                output = model.embed(x)
                for block in model.blocks:
                    output = checkpoint(block, output, use_reentrant=False)
            output.sum().backward(retain_graph=True)
            gradients(model)
            loss = sync.loss()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            found = {name: grad for name, grad in gradients(model).items() if grad.any()}
            assert_same_gradients(found, expected_gradients)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after attaching"])
@pytest.mark.parametrize("case", ["dit", "flux references", "wan"])
def test_a_forward_of_the_instances_own(case: str, late: bool) -> None:
    # accelerate puts one on the model under mixed precision.
    model, inputs = build(case)
    expected = -0.5 * mean_cosine(*states_by_hand(model, inputs)[0:3:2], generated(inputs))

    def wrap() -> None:
        original = model.forward
        model.forward = lambda *args, **kwargs: original(*args, **kwargs)  # type: ignore[method-assign]

    if not late:
        wrap()
    with attach(model, settings()) as sync:
        if late:
            wrap()
        model(**inputs)
        torch.testing.assert_close(sync.loss(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after attaching"])
@pytest.mark.parametrize("implementation", ["NO_REENTRANT", "REENTRANT"])
def test_blocks_in_checkpoint_wrappers(implementation: str, late: bool) -> None:
    from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as wrappers

    model, x = toy(), toy_input()
    expected, expected_gradients = toy_term(model, x)

    def wrap() -> None:
        for index, block in enumerate(model.blocks):
            model.blocks[index] = wrappers.checkpoint_wrapper(block, getattr(wrappers.CheckpointImpl, implementation))

    if not late:
        wrap()
    with attached(model) as sync:
        if late:
            wrap()
        for _ in range(2):
            model(x)
            loss = sync.loss()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            found = {name.replace("_checkpoint_wrapped_module.", ""): g for name, g in gradients(model).items()}
            assert_same_gradients(found, expected_gradients)


@pytest.mark.parametrize("case", ["dit", "flux", "wan"])
def test_what_is_discarded_goes_at_once(case: str) -> None:
    """Python's collector comes by when it likes; until then each forward's whole graph would stay in memory."""
    model, inputs = build(case)
    adapter, layers = get_adapter(case), range(3)
    buffer = HiddenStateBuffer(layers)
    capture = adapter.capture(model, layers, buffer)
    gc.disable()
    try:
        model(**inputs)
        forward = only_forward(capture)
        capture.collect(forward)
        state = weakref.ref(forward.tracked[0])
        del forward
        assert state() is not None
        capture.discard()
        assert state() is None
    finally:
        gc.enable()
        capture.remove()
