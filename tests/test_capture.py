# Shapes: B batch, S tokens, D channels
"""The capture: one training forward a step, whatever else runs, however it is run, and never nothing in silence."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from layersync_core import Attachment, CaptureError, attach
from layersync_core.capture import compiling
from tests.models import (
    TOY,
    FluxTransformer2DModel,
    Outside,
    Toy,
    assert_same_gradients,
    build,
    generated,
    gradients,
    gradients_by_autograd,
    mean_cosine,
    old_flux_states,
    randomise,
    settings,
    states_by_hand,
    toy,
    toy_input,
    toy_term,
)

SECOND = re.escape("a second training forward") + ".*" + re.escape("paused()")


def attached(model: Toy, student: int | None = 1, teacher: int | None = 3, **more: Any) -> Attachment:
    return attach(model, settings(student, teacher, **more), adapter=TOY)


# The ways in which trainers run a model.
def call(model: Any, x: Tensor) -> Tensor:
    return model(x)


def forward_method(model: Any, x: Tensor) -> Tensor:
    return model.forward(x)


def block_by_block(model: Any, x: Tensor) -> Tensor:
    state = model.embed(x)
    for block in model.blocks:
        state = block(state)
    return model.head(state)


WAYS = [call, forward_method, block_by_block]


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
    with attached(model) as sync:
        model.blocks[2] = nn.Identity()
        model(toy_input())
        with pytest.raises(CaptureError, match="block 3 did not run"):
            sync.loss()


def test_a_block_that_runs_twice_is_refused() -> None:
    model = toy()
    model.blocks[1] = model.blocks[2]
    with attached(model) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match="more than once"):
            sync.loss()


# What is trainable, judged by autograd.
def freeze(model: nn.Module, but: str = "\0") -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(but in name)


def require_grad_after_embedding(model: Toy) -> None:
    model.embed.register_forward_hook(lambda module, args, output: output.requires_grad_())


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # re-entrant, no trick
@pytest.mark.parametrize("trick", [False, True], ids=["", "embedding requires grad"])
@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("trainable", ["\0", "blocks.2", "blocks.3"])
def test_a_model_frozen_up_to_the_student_is_refused(trainable: str, reentrant: bool | None, trick: bool) -> None:
    model = toy(reentrant=reentrant)
    freeze(model, but=trainable)
    if trick:
        require_grad_after_embedding(model)
    with attached(model, 2, 4) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match=r"block 2 of 4 \(blocks\.1\) depends on nothing trainable"):
            sync.loss()


@pytest.mark.parametrize("trainable", ["embed", "blocks.0", "blocks.1"])
@pytest.mark.parametrize("reentrant", [None, False, True])
def test_one_trainable_part_up_to_the_student_is_enough(trainable: str, reentrant: bool | None) -> None:
    model = toy(reentrant=reentrant)
    freeze(model, but=trainable)
    if trainable != "embed" and reentrant:
        require_grad_after_embedding(model)
    expected, expected_gradients = toy_term(model, toy_input(), 2, 4)
    with attached(model, 2, 4) as sync:
        for _ in range(2):
            model(toy_input())
            loss = sync.loss()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            assert_same_gradients(gradients(model), expected_gradients)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_reentrant_checkpointing_of_a_frozen_base_without_the_trick_is_refused() -> None:
    model = toy(reentrant=True)
    freeze(model, but="blocks.0")
    with attached(model, 2, 4) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match="re-entrant"):
            sync.loss()


def test_a_model_that_freezes_in_the_middle_of_a_run_is_refused() -> None:
    model = toy()
    with attached(model) as sync:
        model(toy_input())
        sync.loss()
        freeze(model, but="head")
        model(toy_input())
        with pytest.raises(CaptureError, match="depends on nothing trainable"):
            sync.loss()


def test_lora_outside_the_model_and_only_after_the_student_is_refused() -> None:
    model = toy()
    freeze(model)
    networks = [Outside(block.inner) for block in model.blocks[2:]]
    with attached(model, 2, 4) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match="depends on nothing trainable"):
            sync.loss()
    assert networks


@pytest.mark.parametrize("training", [True, False])
def test_training_means_grad_not_train_mode(training: bool) -> None:
    model = toy().train(training)
    with attached(model) as sync:
        model(toy_input())
        torch.testing.assert_close(sync.loss(), toy_term(model, toy_input())[0], rtol=1e-5, atol=1e-6)


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


# Flux: which tokens are images, and which of these are generated.
def old_flux_inputs(references: int, text: int = 5, batch_axis: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    ids = torch.cat([torch.full((4,), float(min(image, 1))) for image in range(1 + references)])
    img_ids = torch.stack([ids, torch.arange(len(ids)), torch.zeros(len(ids))], dim=-1)
    return {
        "hidden_states": torch.randn(2, len(ids), 4),
        "encoder_hidden_states": torch.randn(2, text, 6),
        "img_ids": img_ids.expand(2, -1, -1) if batch_axis else img_ids,
    }


@pytest.mark.parametrize("pair", [(1, 2), (1, 3), (2, 4), (3, 4), (4, 1)])
@pytest.mark.parametrize("tokens", ["target", "all"])
@pytest.mark.parametrize("batch_axis", [False, True], ids=["(S, 3) ids", "(B, S, 3) ids"])
def test_single_blocks_of_older_flux_return_text_and_image_as_one(
    pair: tuple[int, int], tokens: str, batch_axis: bool
) -> None:
    model = randomise(FluxTransformer2DModel())
    inputs = old_flux_inputs(references=1, batch_axis=batch_axis)
    states = old_flux_states(model, inputs["hidden_states"], inputs["encoder_hidden_states"])
    keep = torch.tensor([True] * 4 + [tokens == "all"] * 4)
    expected = -0.5 * mean_cosine(states[pair[0] - 1], states[pair[1] - 1], keep)
    with attach(model, settings(*pair, layersync_tokens=tokens)) as sync:
        model(**inputs)
        loss = sync.loss()
        loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, model))


def test_flux_with_a_batch_axis_on_its_ids() -> None:
    model, inputs = build("flux references")
    states = states_by_hand(model, inputs)
    expected = -0.5 * mean_cosine(states[1], states[4], generated(inputs))
    with attach(model, settings(2, 5)) as sync:
        model(**{**inputs, "img_ids": inputs["img_ids"].expand(2, -1, -1), "txt_ids": inputs["txt_ids"][None]})
        torch.testing.assert_close(sync.loss(), expected, rtol=1e-5, atol=1e-6)


def test_positional_arguments_are_understood() -> None:
    model, inputs = build("flux references")
    states = states_by_hand(model, inputs)
    with attach(model, settings(2, 5)) as sync:
        model(*inputs.values())
        expected = -0.5 * mean_cosine(states[1], states[4], generated(inputs))
        torch.testing.assert_close(sync.loss(), expected, rtol=1e-5, atol=1e-6)


def test_a_batch_of_references_alone_is_an_error_and_not_zero() -> None:
    model, inputs = build("flux references")
    inputs["img_ids"][:, 0] = 1
    with attach(model, settings(2, 5)) as sync:
        model(**inputs)
        with pytest.raises(CaptureError, match="no generated token"):
            sync.loss()


def test_flux_blocks_driven_by_hand_are_refused_with_the_reason() -> None:
    model, inputs = build("flux references")
    with attach(model, settings(2, 5)) as sync:
        states_by_hand(model, inputs)
        with pytest.raises(CaptureError, match=r"called one by one.*reference tokens"):
            sync.loss()


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


# Compiled models.
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
    refused = torch._dynamo.exc.Unsupported if fullgraph else CaptureError
    with pytest.raises(refused, match="SECOND_FORWARD" if fullgraph else SECOND):
        run(x)
    torch.testing.assert_close(sync.loss(), expected, rtol=1e-5, atol=1e-6)
    run(x)
    torch.testing.assert_close(sync.loss(), expected, rtol=1e-5, atol=1e-6)
    sync.remove()


# A store in a block that is compiled and checkpointed is a side effect in a region that backward runs again.
OPTION = "skip_fwd_side_effects_in_bwd_under_checkpoint"


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


@compiles
def test_a_torch_that_cannot_compile_hooked_checkpoints_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_OPTION", "an_option_that_this_torch_does_not_have")
    model = toy(reentrant=False)
    with attached(model), pytest.raises(torch._dynamo.exc.Unsupported, match="side effect"):
        whole(model)(toy_input())


@pytest.mark.parametrize("before", [False, True])
def test_the_compilers_option_is_set_while_anything_is_attached(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_users", 0)
    with torch._dynamo.config.patch({OPTION: before}):
        first, second = attached(toy()), attached(toy())
        first.remove()
        first.remove()
        assert getattr(torch._dynamo.config, OPTION)
        second.remove()
        assert getattr(torch._dynamo.config, OPTION) is before
