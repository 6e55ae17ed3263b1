# Shapes: B batch, S tokens, D channels, T frames, P tokens per frame
"""A third party's losses on the same hidden states: order, shared layers, frames, and misbehaviour."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_core import Attachment, BlockStackAdapter, CaptureError, ConfigError, LayerSyncError, Term, attach
from tests.losses.support import Other, Register, attached, states_apart
from tests.models import (
    TOY,
    assert_same_gradients,
    build,
    generated,
    gradients,
    hooks_on,
    mean_cosine,
    randomise,
    settings,
    states_by_hand,
    toy,
    toy_input,
    toy_states,
    toy_term,
)
from tests.own_capture import OwnAdapter


def test_terms_are_computed_in_order_and_added(register: Register) -> None:
    order: list[str] = []

    def term(name: str, value: float) -> Callable[[Any, int], Term]:
        def compute(states: Any, step: int) -> Term:
            order.append(name)
            loss = value * states.tokens(1).square().mean()
            return Term(loss, {f"{name}_loss": loss})

        return compute

    register(Other(term("late", 3), name="late", order=300), Other(term("early", 2), name="early", order=100))
    register(Other(term("second", 1), name="second", order=100))
    model, sync = attached()
    x = toy_input()
    square = states_apart(model, x)[1].square().mean().detach()
    with sync:
        model(x)
        torch.testing.assert_close(sync.apply(torch.ones(())), 1 + toy_term(model, x)[0] + 6 * square)
        assert order == ["early", "second", "late"]
        metrics = sync.metrics()
        assert set(metrics) == {"early_loss", "second_loss", "late_loss", "layersync_loss", "layersync_similarity"}
        torch.testing.assert_close(metrics["late_loss"], 3 * square)
        assert not metrics["late_loss"].requires_grad


def test_layersync_comes_in_its_place(register: Register) -> None:
    def named(name: str, order: int) -> Other:
        return Other(lambda states, step: Term(states.tokens(1).mean(), {name: torch.ones(())}), name=name, order=order)

    register(named("later", 201), named("tail", 200), named("ahead", 200), named("sooner", 199))
    model, sync = attached()
    with sync:
        model(toy_input())
        sync.loss()
        assert list(sync.metrics()) == ["sooner", "ahead", "layersync_loss", "layersync_similarity", "tail", "later"]


def test_a_layer_that_two_want_is_captured_once_and_only_asked_ones_are(register: Register) -> None:
    seen: dict[str, Any] = {}

    def compute(states: Any, step: int) -> Term:
        seen["tokens"] = [states.tokens(layer) for layer in (0, 2)]
        seen["mask"], seen["grid"], seen["weight"] = states.mask, states.grid, states.sample_weight
        for layer in (1, 3):
            with pytest.raises(CaptureError, match=f"layer {layer} was not requested"):
                states.tokens(layer)
        return Term(states.tokens(0).mean())

    register(Other(compute, layers=(0, 2)))
    model, sync = attached()
    x, weight = toy_input(), torch.ones(2)
    states = states_apart(model, x)
    with sync:
        assert hooks_on(model.blocks[1]) == 0
        # On the last block stands the one that shows what the main loss trains.
        assert hooks_on(model.blocks) == sum(hooks_on(model.blocks[layer]) for layer in (0, 2, 3))
        model(x)
        loss = sync.apply(torch.ones(()), sample_weight=weight)
        torch.testing.assert_close(seen["tokens"], [states[0], states[2]])
        assert (seen["mask"], seen["grid"], seen["weight"]) == (None, None, weight)
        torch.testing.assert_close(loss, 1 + states[0].mean() + toy_term(model, x)[0])


@pytest.mark.parametrize("order", [100, 300], ids=["before LayerSync", "after LayerSync"])
def test_one_that_raises_leaves_no_tensor_behind(register: Register, order: int) -> None:
    seen: list[Any] = []

    def compute(states: Any, step: int) -> Term:
        seen.append(weakref.ref(states.tokens(1)))
        if len(seen) == 1:
            raise ArithmeticError("broken")
        return Term(states.tokens(1).mean())

    register(Other(compute, order=order))
    model, sync = attached()
    x = toy_input()
    with sync:
        model(x)
        with pytest.raises(ArithmeticError, match="broken"):
            sync.loss()
        gc.collect()
        assert [reference() for reference in seen] == [None]
        with pytest.raises(CaptureError, match="no training forward"):
            sync.loss()
        model(x)
        torch.testing.assert_close(sync.loss(), states_apart(model, x)[1].mean() + toy_term(model, x)[0])


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (torch.zeros(()), "Tensor"),
        (1.0, "float"),
        (Term(1.0), "float"),  # type: ignore[arg-type]
        (Term(None), "NoneType"),  # type: ignore[arg-type]
        (Term(torch.ones(3)), r"shape \(3,\)"),
        (Term(torch.ones(()), {"other_metric": 1.0}), "other_metric"),  # type: ignore[dict-item]
        (Term(torch.ones(()), {"other_metric": torch.ones(2)}), "other_metric"),
    ],
)
def test_one_that_returns_nonsense_is_named(register: Register, returned: Any, said: str) -> None:
    register(Other(lambda states, step: returned))
    model, sync = attached()
    with sync:
        model(toy_input())
        with pytest.raises(LayerSyncError, match=f"regularizer other returned .*{said}"):
            sync.apply(torch.zeros(()))
        with pytest.raises(CaptureError, match="no training forward"):
            sync.loss()


def test_one_may_have_no_term_this_step(register: Register) -> None:
    register(Other(lambda states, step: None))
    model, sync = attached()
    with sync:
        model(toy_input())
        torch.testing.assert_close(sync.loss(), toy_term(model, toy_input())[0])


@pytest.mark.parametrize("layers", [(4,), (-1,), (0, 99)])
def test_one_that_asks_for_a_layer_that_is_not_there_is_named(register: Register, layers: Sequence[int]) -> None:
    register(Other(lambda states, step: None, layers=layers))
    model = toy()
    with pytest.raises(LayerSyncError, match=r"regularizer other asks for layer .* 0 to 3"):
        attach(model, settings(), adapter=TOY)
    assert hooks_on(model) == 0


@pytest.mark.parametrize("fault", ["layers", "active"])
def test_one_that_fails_while_attaching_leaves_no_hook(register: Register, fault: str) -> None:
    def broken(*arguments: Any) -> Any:
        raise ConfigError("this model does not fit")

    other = Other(lambda states, step: None)
    setattr(other, fault, broken)
    register(other)
    model = toy()
    with pytest.raises(ConfigError, match="does not fit"):
        attach(model, settings(), adapter=TOY)
    assert hooks_on(model) == 0
    delattr(other, fault)
    attach(model, settings(), adapter=TOY).remove()


def test_one_alone_works_without_layersync(register: Register) -> None:
    register(Other(lambda states, step: Term(states.tokens(1).mean())))
    model, x = toy(), toy_input()
    with attach(model, {"other_enabled": True}, adapter=TOY) as sync:
        assert (sync.pairs, sync.student, len(sync.blocks)) == ([], None, 4)
        model(x)
        torch.testing.assert_close(sync.loss(), states_apart(model, x)[1].mean())
    with attach(model, {"other_enabled": False}, adapter=TOY) as sync:
        assert hooks_on(model) == 0


def test_one_goes_on_after_layersync_has_ended(register: Register) -> None:
    register(Other(lambda states, step: Term(states.tokens(1).mean())))
    model, x = toy(), toy_input()
    with attach(model, settings(1, 3, layersync_cutoff_step=1), adapter=TOY) as sync:
        for step in range(3):
            model(x)
            term = 0 if step else toy_term(model, x)[0]
            torch.testing.assert_close(sync.loss(), states_apart(model, x)[1].mean() + term)


# Frames.
def frames_of(register: Register, case: str, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
    seen: list[Any] = []

    def compute(states: Any, step: int) -> Term:
        seen.extend([states.frames(1), states.grid])
        return Term(states.frames(1).mean())

    register(Other(compute))
    with attach(model, settings()) as sync:
        model(**inputs)
        sync.loss()
    return seen[0], seen[1]


@pytest.mark.parametrize("case", ["wan", "wan vace", "wan animate"])
def test_frames_stand_where_the_latents_frames_are(register: Register, case: str) -> None:
    model, inputs = build(case)
    # Blocks without weights return what they get: the patches, in the latent's own layout (B, D, T, H, W).
    for part in (model.blocks, getattr(model, "vace_blocks", None), getattr(model, "face_adapter", None)):
        for parameter in () if part is None else part.parameters():
            nn.init.zeros_(parameter)
    caught: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda module, args: caught.append(args[0].detach()))
    for name in ("hidden_states", "control_hidden_states", "pose_hidden_states"):
        if name in inputs:  # a width that is not the height
            inputs[name] = torch.randn(*inputs[name].shape[:-1], 12)
    frames_BTPD, grid = frames_of(register, case, model, inputs)
    assert grid == (3, 4, 6)
    patches = model.patch_embedding(inputs["hidden_states"])
    if "pose_hidden_states" in inputs:
        patches[:, :, 1:] += model.pose_patch_embedding(inputs["pose_hidden_states"])
    expected = patches.permute(0, 2, 3, 4, 1).flatten(2, 3)
    assert frames_BTPD.shape == (2, 3, 24, 24)
    torch.testing.assert_close(frames_BTPD, expected)


@pytest.mark.parametrize(("case", "grid"), [("dit", (1, 4, 4)), ("flux", None)])
def test_images_have_one_frame(register: Register, case: str, grid: Any) -> None:
    model, inputs = build(case)
    frames_BTPD, found = frames_of(register, case, model, inputs)
    assert found == grid
    torch.testing.assert_close(frames_BTPD[:, 0], states_by_hand(model, inputs)[1])
    assert frames_BTPD.shape[1] == 1


@pytest.mark.parametrize(("grid", "fits"), [((5, 1, 1), True), ((1, 2, 2), False)])
def test_frames_are_all_of_the_tokens(register: Register, grid: tuple[int, int, int], fits: bool) -> None:
    def compute(states: Any, step: int) -> None:
        if fits:
            assert torch.equal(states.frames(1), states.tokens(1)[:, :, None])
        else:
            with pytest.raises(CaptureError, match=f"5 tokens do not fill {grid[0]} frames of {grid[1]} by {grid[2]}"):
                states.frames(1)

    register(Other(compute))
    adapter = BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks", grid=lambda call: grid, video=True)
    with attach(model := toy(), settings(), adapter=adapter) as sync:
        model(toy_input())
        sync.loss()


def test_tokens_of_a_capture_of_ones_own_are_one_frame(register: Register) -> None:
    shapes: list[Any] = []
    register(Other(lambda states, step: shapes.append(states.frames(1).shape)))
    with attach(model := toy(), settings(), adapter=OwnAdapter()) as sync:
        model(toy_input())
        sync.loss()
    assert shapes == [(2, 1, 5, 8)]


def test_frames_of_blocks_driven_by_hand_are_refused_and_tokens_are_not(register: Register) -> None:
    def compute(states: Any, step: int) -> Term:
        with pytest.raises(CaptureError, match="frames"):
            states.frames(1)
        return Term(states.tokens(1).mean())

    register(Other(compute))
    model, inputs = build("wan")
    with attach(model, settings()) as sync:
        states = states_by_hand(model, inputs)
        torch.testing.assert_close(sync.loss(), states[1].mean() - 0.5 * mean_cosine(states[0], states[2]))


def test_the_mask_is_that_of_the_generated_tokens(register: Register) -> None:
    seen: list[Any] = []

    def compute(states: Any, step: int) -> None:
        seen.extend([states.mask, states.mask_of("all"), states.tokens(1).shape])

    register(Other(compute))
    model, inputs = build("flux references")
    keep = generated(inputs)
    assert keep is not None
    with attach(randomise(model), settings(layersync_tokens="all")) as sync:
        model(**inputs)
        sync.loss()
    assert torch.equal(seen[0], keep.expand(2, -1))
    assert seen[1:] == [None, (2, 48, 32)]


@pytest.mark.parametrize(
    ("case", "tokens", "told"),
    [
        ("flux references", "all", False),
        ("flux references", "target", False),
        ("flux", "all", False),  # none came along, but the adapter would mark them
        ("dit", "all", True),
        ("dit", "target", False),
    ],
)
def test_references_that_nothing_marks_are_told_once(
    case: str, tokens: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, inputs = build(case)
    with attach(randomise(model), settings(1, 2, layersync_tokens=tokens)) as sync:
        for _ in range(2):
            model(**inputs)
            sync.loss()
    found = [message for message in caplog.messages if "no token of this forward is marked" in message]
    assert len(found) == told


# Beside objectives that run the model several times a step.
class FourForwards:
    """A trainer whose loss takes the main pass, an EMA teacher's, a fake trajectory's and one at a negative time."""

    def __init__(self, model: Any, sync: Attachment, pauses: bool) -> None:
        self._model, self._sync, self._pauses = model, sync, pauses
        self._teacher = copy.deepcopy(model)

    def loss(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self._teacher(x)
        negative = self._further(-x)
        main = self._model(x)
        fake = self._further(main.detach())
        return (main - target).square().mean() + main.square().mean() + 0.1 * fake.mean() + 0.1 * negative.mean()

    def _further(self, x: Tensor) -> Tensor:
        if not self._pauses:
            return self._model(x)
        with self._sync.paused():
            return self._model(x)


@pytest.mark.parametrize("reentrant", [None, True, False], ids=["plain", "re-entrant", "not re-entrant"])
def test_four_forwards_a_step_with_gradient_accumulation(register: Register, reentrant: bool | None) -> None:
    register(Other(lambda states, step: Term(states.trainable_tokens(1).square().mean())))
    model = toy(reentrant=reentrant)
    untouched = copy.deepcopy(model)
    untouched.reentrant = None
    batches = [toy_input(seed=seed).requires_grad_() for seed in range(6)]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    with attach(model, settings(1, 3), adapter=TOY) as sync:
        trainer = FourForwards(model, sync, pauses=True)
        for step in range(2):  # of three micro-batches each
            untouched.load_state_dict(model.state_dict())
            by_hand = FourForwards(untouched, sync, pauses=True)
            by_hand._teacher = trainer._teacher
            for x in batches[3 * step : 3 * step + 3]:
                (sync.apply(trainer.loss(x)) / 3).backward()
                states = toy_states(untouched, x)
                term = states[1].square().mean() - 0.5 * mean_cosine(states[0], states[2])
                ((by_hand.loss(x) + term) / 3).backward()
            found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            assert_same_gradients(found, gradients(untouched))
            optimiser.step()
            optimiser.zero_grad()


def test_several_forwards_without_a_pause_are_refused() -> None:
    model, sync = attached()
    with sync, pytest.raises(CaptureError, match=r"a second training forward ran .*`with attachment\.paused\(\):`"):
        FourForwards(model, sync, pauses=False).loss(toy_input())


@pytest.mark.parametrize("name", ["layersync_loss", "layersync_similarity", "layersync_grad_ratio", "loss", "step"])
def test_a_metric_may_not_have_a_name_of_ours_or_the_trainer_s(register: Register, name: str) -> None:
    register(Other(lambda states, step: Term(states.tokens(1).mean(), {name: torch.ones(())})))
    model, sync = attached()
    with sync:
        model(toy_input())
        with pytest.raises(LayerSyncError, match=f"regularizer other returned a metric '{name}'"):
            sync.apply(torch.ones(()))


def test_two_may_not_have_a_metric_of_one_name(register: Register) -> None:
    for name in ("one", "two"):
        register(Other(lambda states, step: Term(states.tokens(1).mean(), {"score": torch.ones(())}), name=name))
    model, sync = attached()
    with sync:
        model(toy_input())
        with pytest.raises(
            LayerSyncError, match="regularizer two returned a metric 'score', a name that belongs to one"
        ):
            sync.apply(torch.ones(()))


def test_a_measured_gradient_may_not_have_a_name_of_ours(register: Register) -> None:
    register(Other(lambda states, step: Term(states.tokens_with_grad_ratio(1, "layersync_grad_ratio").mean())))
    model, sync = attached()
    with sync:
        model(toy_input())
        with pytest.raises(LayerSyncError, match="a name that belongs to layersync"):
            sync.apply(torch.ones(()))


def test_a_metric_is_what_it_was_when_the_term_was_computed(register: Register) -> None:
    score = torch.ones(())
    register(Other(lambda states, step: Term(states.tokens(1).mean(), {"score": score})))
    model, sync = attached()
    with sync:
        for value in (1, 2):
            score.fill_(value)
            model(toy_input())
            sync.apply(torch.ones(()))
        score.fill_(9)
        assert float(read := sync.metrics()["score"]) == 1.5
        model(toy_input())
        sync.apply(torch.ones(()))
        score.fill_(3)
        assert (float(sync.metrics()["score"]), float(read)) == (9, 1.5)


def test_one_gets_ready_once(register: Register) -> None:
    done: list[Any] = []
    other = Other(lambda states, step: done.append(step))
    other.begin = done.append  # type: ignore[attr-defined]
    register(other)
    model, sync = attached()
    with sync:
        for _ in range(2):
            model(toy_input())
            sync.loss()
    assert done == [model, 0, 1]
