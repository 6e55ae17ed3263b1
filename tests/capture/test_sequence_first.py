"""Blocks that return (S, B, D): the same tokens, gradients and errors as of blocks that return (B, S, D)."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersync_core import BlockStack, BlockStackAdapter, CaptureError, Term, attach
from layersync_core.suggest import probe as suggest
from layersync_core.testing import seed_everything
from tests.losses.conftest import register as register
from tests.losses.support import Other, Register
from tests.models import assert_same_gradients, gradients, gradients_by_autograd, mean_cosine, settings

D, IMAGE, TEXT = 8, 6, 4


class Layer(nn.Module):
    """Takes and returns (S, B, D), or (B, S, D); of two streams where it gets two."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.inner, self.mix, self.axis = nn.Linear(D, D), nn.Linear(D, D), axis

    def forward(self, x: Tensor, text: Tensor | None = None) -> Any:
        both = x if text is None else torch.cat([x, text], dim=self.axis)
        both = both + torch.tanh(self.inner(both)) + 0.3 * self.mix(both).mean(dim=self.axis, keepdim=True)
        return both if text is None else both.split([x.shape[self.axis], text.shape[self.axis]], dim=self.axis)


class Turned(nn.Module):
    """Four layers on image and text in one sequence, or on the image alone.

    Args:
        form: "first" or "last": where the image stands; "alone": no text; "dual": two layers of two streams before two
            of one sequence.
        axis: Of the tokens, in what its blocks return.
        reentrant: Kind of checkpointing; None without.
        embeds_turned: The embedder returns what the blocks return.
    """

    def __init__(
        self, form: str = "first", axis: int = 0, reentrant: bool | None = None, embeds_turned: bool = False
    ) -> None:
        super().__init__()
        self.form, self.axis, self.reentrant, self.embeds_turned = form, axis, reentrant, embeds_turned
        self.embed, self.text, self.head = nn.Linear(2, D), nn.Linear(5, D), nn.Linear(D, 2)
        dual = 2 if form == "dual" else 0
        self.dual = nn.ModuleList(Layer(axis) for _ in range(dual))
        self.layers = nn.ModuleList(Layer(axis) for _ in range(4 - dual))

    def run(self, layer: nn.Module, *given: Tensor) -> Any:
        return layer(*given) if self.reentrant is None else checkpoint(layer, *given, use_reentrant=self.reentrant)

    def forward(self, sample: Tensor, text: Tensor, references: Tensor | None = None) -> Tensor:
        sample = sample if references is None else torch.cat([sample, references], dim=1)
        image = self.embed(sample.transpose(0, 1) if self.embeds_turned else sample)
        image, text = (image if self.embeds_turned else self.turn(image)), self.turn(self.text(text))
        count, axis = image.shape[self.axis], self.axis
        for layer in self.dual:
            image, text = self.run(layer, image, text)
        parts = {"last": [text, image], "alone": [image + text.mean(axis, keepdim=True)]}.get(self.form, [image, text])
        joined = torch.cat(parts, dim=axis)
        for layer in self.layers:
            joined = self.run(layer, joined)
        joined = self.turn(joined)
        return self.head(joined[:, -count:] if self.form == "last" else joined[:, :count])

    def turn(self, state: Tensor) -> Tensor:
        return state if self.axis else state.transpose(0, 1).contiguous()


def inputs(batch: int = 2, image: int = IMAGE, text: int = TEXT, references: int = 0) -> dict[str, Tensor]:
    found = {"sample": torch.randn(batch, image, 2), "text": torch.randn(batch, text, 5)}
    return found | ({"references": torch.randn(batch, references, 2)} if references else {})


def target(call: Any) -> Tensor:
    return torch.arange(call.tokens) < call.arguments["sample"].shape[1]


def adapter(form: str = "first", said: bool | None = True, **more: Any) -> BlockStackAdapter:
    """Return an adapter.

    Args:
        form: As of the model.
        said: ``sequence_first`` of every stack; None leaves it to the samples.
        more: Fields to change.
    """
    joined: Any = {"alone": "all", "dual": "first"}.get(form, form)
    stacks = [BlockStack("layers", joined=joined, sequence_first=said)]
    if form == "dual":
        stacks = [BlockStack("dual", element=0, sequence_first=said), *stacks]
    return BlockStackAdapter(
        **{"family": "turned", "model_classes": "Turned", "stacks": stacks, "embedder": "embed", "target": target}
        | more
    )


def hooked(model: Turned, pair: tuple[int, int], given: dict[str, Tensor], keep: slice) -> tuple[Tensor, Tensor]:
    """Return the output, and LayerSync's term from plain hooks that turn what the blocks return."""
    seen: list[Tensor] = []

    def store(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output)

    layers = [*model.dual, *model.layers]
    handles = [layer.register_forward_hook(store) for layer in layers]
    output = model(**given)
    for handle in handles:
        handle.remove()
    states = []
    for number in pair:
        state = seen[number - 1]
        state = state[0] if isinstance(state, (tuple, list)) else state
        state_BSD = state if model.axis else state.transpose(0, 1)
        count = given["sample"].shape[1] + (given["references"].shape[1] if "references" in given else 0)
        states.append((state_BSD[:, -count:] if model.form == "last" else state_BSD[:, :count])[:, keep])
    return output, -0.5 * mean_cosine(*states)


FORMS = ["first", "last", "alone", "dual"]


@pytest.mark.parametrize("reentrant", [None, True, False])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_hooks_that_turn_by_hand(form: str, reentrant: bool | None) -> None:
    seed_everything()
    model = Turned(form)
    expected, given = {}, {name: value.requires_grad_() for name, value in inputs(references=3).items()}
    for tokens, keep in (("target", slice(IMAGE)), ("all", slice(None))):
        output, term = hooked(model, (1, 3), given, keep)
        expected[tokens] = gradients_by_autograd(output.square().mean() + term, model)
    model.reentrant = reentrant
    for tokens in expected:
        with attach(model, settings(1, 3, layersync_tokens=tokens), adapter=adapter(form)) as sync:
            for _ in range(2):
                sync.apply(model(**given).square().mean()).backward()
                assert_same_gradients(gradients(model), expected[tokens])


def test_blocks_that_are_called_one_by_one() -> None:
    seed_everything()
    model, given = Turned(), inputs()
    _, term = hooked(model, (1, 3), given, slice(None))
    with attach(model, settings(1, 3), adapter=adapter(block_target=lambda call: None)) as sync:
        state = torch.cat([model.turn(model.embed(given["sample"])), model.turn(model.text(given["text"]))])
        for layer in model.layers:
            state = layer(state)
        torch.testing.assert_close(sync.loss(), term)


@pytest.mark.parametrize("form", ["first", "alone"])
def test_the_mask_of_generated_tokens_is_the_user_s_and_the_measured(form: str) -> None:
    seed_everything()
    model, given = Turned(form), inputs()
    output, term = hooked(model, (1, 3), given, slice(2))
    expected = gradients_by_autograd(output[:, :2].square().mean() + term, model)
    ways = [({"layersync_generated_tokens": 2}, {}), ({}, {"measured": True})]
    for said, more in ways:
        with attach(model, settings(1, 3, **said), adapter=adapter(form, target=None, **more)) as sync:
            sync.apply(model(**given)[:, :2].square().mean()).backward()
            assert_same_gradients(gradients(model), expected)


def test_the_ratio_of_gradients_is_that_of_blocks_that_return_the_batch_first() -> None:
    found = []
    for axis in (0, 1):
        seed_everything()
        model = Turned(axis=axis)
        wanted = settings(1, 3, layersync_log_grad_ratio=True)
        with attach(model, wanted, adapter=adapter(said=not axis)) as sync:
            sync.apply(model(**inputs()).square().mean()).backward()
            found.append({name: float(value) for name, value in sync.metrics().items()})
    assert found[0] == pytest.approx(found[1])
    assert found[0]["layersync_grad_ratio"] > 0


def test_frames_are_those_of_the_tokens(register: Register) -> None:
    seed_everything()
    model, seen = Turned("last"), []
    raw: list[Tensor] = []
    model.layers[1].register_forward_hook(lambda module, args, output: raw.append(output))

    def compute(states: Any, step: int) -> Term:
        seen.extend([states.frames(1), states.grid])
        return Term(states.frames(1).mean())

    register(Other(compute))
    said = adapter("last", grid=lambda call: (2, 1, 3), video=True)
    with attach(model, settings(), adapter=said) as sync:
        sync.apply(model(**inputs()).square().mean())
    torch.testing.assert_close(seen[0], raw[0].transpose(0, 1)[:, TEXT:].unflatten(1, (2, 3)))
    assert seen[1] == (2, 1, 3)


def test_measuring_a_pair_sees_the_same_as_of_blocks_that_return_the_batch_first() -> None:
    found = []
    for axis in (0, 1):
        seed_everything()
        model = Turned(axis=axis)
        with suggest.Probe(model, adapter(said=not axis)) as probe:
            model(**inputs())
        found.append(probe.findings())
    assert str(found[0]) == str(found[1])


def test_the_text_beside_dual_streams_is_counted_along_its_axis() -> None:
    seed_everything()
    model = Turned("dual")
    drop = model.layers[0].register_forward_hook(lambda module, args, output: output[:-1])
    with (
        attach(model, settings(1, 4), adapter=adapter("dual")) as sync,
        pytest.raises(CaptureError, match=r"layers.1 returned a sequence of 9 tokens where 10 were joined"),
    ):
        sync.apply(model(**inputs()).square().mean())
    drop.remove()


# What a declaration the wrong way round meets: (the blocks' axis of tokens, batch, image, text).
TURNED: dict[str, tuple[str, int, tuple[int, int, int]]] = {
    f"{form}, {'(S, B, D)' if axis == 0 else '(B, S, D)'}, {sizes}": (form, axis, sizes)
    for form in ("first", "last", "alone", "dual")
    for axis in (0, 1)
    for sizes in ((2, 6, 4), (10, 6, 4), (6, 6, 4), (4, 6, 4))
    # Every token counts and there are as many as samples: the term is the same either way round.
    if not (form == "alone" and sizes[0] == sizes[1])
}


@pytest.mark.parametrize("case", TURNED)
def test_a_declaration_the_wrong_way_round_is_an_error(case: str) -> None:
    form, axis, (batch, image, text) = TURNED[case]
    seed_everything()
    model = Turned(form, axis)
    wrong = adapter(form, said=bool(axis), target=None)
    with (
        attach(model, settings(1, 3), adapter=wrong) as sync,
        pytest.raises(CaptureError, match=r"sequence_first|places"),
    ):
        sync.apply(model(**inputs(batch, image, text)).square().mean()).backward()


@pytest.mark.parametrize("batch", [2, IMAGE + 3])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_declaration_the_wrong_way_round_with_references(axis: int, batch: int) -> None:
    seed_everything()
    model = Turned("alone", axis)
    with (
        attach(model, settings(1, 3), adapter=adapter("alone", said=bool(axis))) as sync,
        pytest.raises(CaptureError, match="sequence_first"),
    ):
        sync.apply(model(**inputs(batch, references=3))[:, :IMAGE].square().mean()).backward()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_declaration_the_wrong_way_round_where_nothing_counts(axis: int) -> None:
    seed_everything()
    model = Turned("alone", axis)
    wrong = adapter("alone", said=bool(axis), target=None, embedder=None)
    with (
        attach(model, settings(1, 3), adapter=wrong) as sync,
        pytest.raises(
            CaptureError, match=r"where the call has 3 samples: (write|leave out) sequence_first=True in its"
        ),
    ):
        sync.apply(model(**inputs(3)).square().mean())


class Packed(Turned):
    """Takes a batch as one sequence, without an axis of samples."""

    def forward(self, sample: Tensor, text: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(sample[None], text[None])[0]


def test_a_batch_that_is_packed_into_one_sequence_is_right() -> None:
    seed_everything()
    model = Packed("alone", axis=1)
    packed = adapter("alone", said=False, model_classes="Packed", target=None, embedder=None)
    with attach(model, settings(1, 3), adapter=packed) as sync:
        sync.apply(model(*(value.flatten(0, 1) for value in inputs(1).values())).square().mean()).backward()
    assert gradients(model)["layers.0.inner.weight"].any()


def test_an_embedder_that_returns_tokens_first_is_an_error_that_says_what_to_give() -> None:
    seed_everything()
    model = Turned(embeds_turned=True)
    with (
        attach(model, settings(1, 3), adapter=adapter()) as sync,
        pytest.raises(CaptureError, match="where the patch embedder returns tokens first, give image_tokens"),
    ):
        sync.apply(model(**inputs()).square().mean())
    counted = adapter(embedder=None, image_tokens=lambda call: call.arguments["sample"].shape[1])
    _, term = hooked(model, (1, 3), given := inputs(), slice(None))
    with attach(model, settings(1, 3), adapter=counted) as sync:
        model(**given)
        torch.testing.assert_close(sync.loss(), term)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_right_declaration_is_silent_with_as_many_samples_as_tokens(
    form: str, axis: int, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    seed_everything()
    model = Turned(form, axis)
    with caplog.at_level(logging.WARNING), attach(model, settings(1, 3), adapter=adapter(form, not axis)) as sync:
        for batch in (IMAGE, IMAGE + TEXT, 1):
            sync.apply(model(**inputs(batch)).square().mean()).backward()
    assert not caplog.records
    assert not recwarn.list


@pytest.mark.parametrize("form", ["first", "last", "alone"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_class_that_sources_write_in_either_order_is_read_by_its_samples(form: str, axis: int) -> None:
    seed_everything()
    model = Turned(form, axis)
    either = adapter(form, said=None)
    for batch in (2, 1):
        given = inputs(batch, references=3)
        output, term = hooked(model, (1, 3), given, slice(IMAGE))
        expected = gradients_by_autograd(output[:, :IMAGE].square().mean() + term, model)
        with attach(model, settings(1, 3), adapter=either) as sync:
            sync.apply(model(**given)[:, :IMAGE].square().mean()).backward()
            assert_same_gradients(gradients(model), expected)
    length = IMAGE + (TEXT if form != "alone" else 0)
    with (
        attach(model, settings(1, 3), adapter=either) as sync,
        pytest.raises(CaptureError, match="is ambiguous here: train batches of another size"),
    ):
        sync.apply(model(**inputs(length)).square().mean())


def test_what_is_found_by_measuring_is_declared_so(tmp_path: Path) -> None:
    seed_everything()
    model, file = Turned("first"), tmp_path / "turned.json"
    given = inputs()
    output, term = hooked(model, (1, 3), given, slice(None))
    expected = gradients_by_autograd(output.square().mean() + term, model)
    for family in ("auto", str(file)):
        with attach(model, settings(1, 3), family=family) as sync:
            sync.apply(model(**given).square().mean()).backward()
            assert_same_gradients(gradients(model), expected)
            if family == "auto":
                sync.save_adapter(file)
    assert json.loads(file.read_text())["stacks"][0]["sequence_first"] is True
