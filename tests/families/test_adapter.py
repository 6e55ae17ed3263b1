# Shapes: B batch, S tokens, D channels, T frames
"""Adapters: as data for a model of one's own, written by hand, and what they refuse to guess."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_core import (
    BlockStack,
    BlockStackAdapter,
    CaptureError,
    ConfigError,
    ModelLayout,
    UnknownFamilyError,
    attach,
    only_forward,
)
from layersync_core.capture.buffer import HiddenStateBuffer
from layersync_core.capture.layout import ForwardCall, latent_grid
from layersync_core.protocol import Adapter
from tests.models import (
    TOY,
    Toy,
    ToyBlock,
    assert_same_gradients,
    gradients,
    gradients_by_autograd,
    hooks_on,
    mean_cosine,
    randomise,
    settings,
    toy,
    toy_input,
    toy_states,
    toy_term,
)
from tests.own_capture import OwnAdapter


def test_a_model_of_ones_own_needs_an_adapter() -> None:
    with pytest.raises(UnknownFamilyError, match="Toy"):
        attach(toy(), settings())
    with attach(toy(), settings(), adapter=TOY) as sync:
        assert sync.family == "toy"
        assert str(sync.student) == "block 1 of 4 (blocks.0)"
        assert sync.blocks[0].width == 8


def test_an_adapter_that_does_not_fit_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="adapter toy does not fit this Sequential"):
        attach(model, settings(), adapter=TOY)
    other_place = BlockStackAdapter(family="toy", model_classes="Toy", stacks="layers")
    with pytest.raises(ConfigError, match="adapter toy does not fit this Toy"):
        attach(toy(), settings(), adapter=other_place)
    assert hooks_on(model) == 0


class Streams(nn.Module):
    """Two kinds of blocks; what they return and where the image stands in it is given."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.embed, self.embed_text = nn.Linear(3, 8), nn.Linear(3, 8)
        self.double_blocks, self.single_blocks = (nn.ModuleList(Stream(self) for _ in range(2)) for _ in range(2))

    def forward(self, image: Tensor, text: Tensor, extra: Tensor | None = None) -> Any:
        image, text = self.embed(image), self.embed_text(text)
        for block in (*self.double_blocks, *self.single_blocks):
            image, text = self.split(block(self.join(image, text)), text.shape[1])
        return image

    def join(self, image: Tensor, text: Tensor) -> Any:
        return {
            "image, text": (image, text),
            "text, image": [text, image],
            "text+image": torch.cat([text, image], dim=1),
            "image+text": torch.cat([image, text], dim=1),
        }[self.form]

    def split(self, both: Any, text: int) -> tuple[Tensor, Tensor]:
        if self.form == "image, text":
            return both[0], both[1]
        if self.form == "text, image":
            return both[1], both[0]
        if self.form == "text+image":
            return both[:, text:], both[:, :text]
        return both[:, :-text], both[:, -text:]


class Stream(nn.Module):
    def __init__(self, model: Streams) -> None:
        super().__init__()
        self.block, self.model = ToyBlock(8), [model]

    def forward(self, both: Any) -> Any:
        if isinstance(both, Tensor):
            return self.block(both)
        mixed = self.block(torch.cat(list(both), dim=1))
        return type(both)(mixed.split([part.shape[1] for part in both], dim=1))


FORMS = {
    "image, text": {"element": 0},
    "text, image": {"element": 1},
    "text+image": {"joined": "last"},
    "image+text": {"joined": "first"},
}


def streams(form: str, embedder: str | None = "embed", **how: Any) -> tuple[Streams, BlockStackAdapter]:
    torch.manual_seed(0)
    stacks = [BlockStack(path, **(how or FORMS[form])) for path in ("double_blocks", "single_blocks")]  # type: ignore[arg-type]
    adapter = BlockStackAdapter(
        family="streams", model_classes="Streams", stacks=stacks, embedder=embedder, width="embed.out_features"
    )
    return randomise(Streams(form)), adapter  # type: ignore[return-value]


@pytest.mark.parametrize("text", [1, 4, 7])
@pytest.mark.parametrize("form", FORMS)
def test_the_image_tokens_are_found_in_every_form(form: str, text: int) -> None:
    model, adapter = streams(form)
    inputs = toy_input(tokens=4), toy_input(tokens=text, seed=1)
    states = blocks_of(model, model.embed(inputs[0]), model.embed_text(inputs[1]))
    expected = -0.5 * mean_cosine(states[1], states[3])
    with attach(model, settings(2, 4), adapter=adapter) as sync:
        model(*inputs)
        loss = sync.loss()
        loss.backward()
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, model))


@pytest.mark.parametrize(
    ("form", "how", "said"),
    [
        ("text, image", {"element": 0}, "5 tokens where the patch embedder gave 4"),  # text of another length
        ("text+image", {"joined": "all"}, "9 tokens where the patch embedder gave 4"),
        ("text, image", {"joined": "last"}, r"double_blocks\.0 returned 2 values.*expects one tensor"),
        ("text, image", {"element": 2}, r"double_blocks\.0 returned 2 values.*position 2;.* from 0 to 1$"),
        ("text+image", {"element": 1}, r"double_blocks\.0 returned one tensor.*position 1"),
    ],
)
def test_an_adapter_that_would_align_the_wrong_tokens_is_refused(form: str, how: dict[str, Any], said: str) -> None:
    model, adapter = streams(form, **how)
    with attach(model, settings(1, 3), adapter=adapter) as sync:
        model(toy_input(tokens=4), toy_input(tokens=5, seed=1))
        with pytest.raises(CaptureError, match=said):
            sync.loss()


def test_joined_tokens_without_the_embedder_are_refused() -> None:
    model, adapter = streams("text+image")
    with attach(model, settings(1, 3), adapter=adapter) as sync:
        embedded = torch.nn.functional.linear(toy_input(), model.embed.weight, model.embed.bias)
        both = torch.cat([model.embed_text(toy_input()), embedded], dim=1)
        for block in (*model.double_blocks, *model.single_blocks):
            both = block(both)
        with pytest.raises(CaptureError, match="patch embedder did not run"):
            sync.loss()


def blocks_of(model: Streams, image: Tensor, text: Tensor) -> list[Tensor]:
    """Return the image tokens after each block, from blocks that are called one by one."""
    words, states = text, []
    for block in (*model.double_blocks, *model.single_blocks):
        image, words = model.split(block(model.join(image, words)), text.shape[1])
        states.append(image)
    return states


def test_image_tokens_are_counted_from_the_models_arguments() -> None:
    calls: list[ForwardCall] = []

    def count(call: ForwardCall) -> int:
        calls.append(call)
        return int(call.arguments["image"].shape[1])

    model, adapter = streams("text+image")
    inputs = toy_input(tokens=4), toy_input(tokens=7, seed=1)
    states = blocks_of(model, model.embed(inputs[0]), model.embed_text(inputs[1]))
    with attach(model, settings(2, 4), adapter=replace(adapter, embedder=None, image_tokens=count)) as sync:
        model(*inputs)
        torch.testing.assert_close(sync.loss(), -0.5 * mean_cosine(states[1], states[3]).detach())
    assert [(call.model, call.batch, call.tokens) for call in calls] == [(model, 0, 0)]


@pytest.mark.parametrize(
    ("how", "whole", "said"),
    [
        ({"embedder": None}, True, "its adapter names no embedder, so they cannot be told apart"),
        ({"embedder": None, "image_tokens": lambda call: 4}, False, "from which image_tokens counts, did not run"),
        ({"embedder": "pool"}, True, r"the embedder pool returned shape \(2, 8\) where \(batch, tokens, channels\)"),
    ],
)
def test_why_joined_tokens_cannot_be_told_apart(how: dict[str, Any], whole: bool, said: str) -> None:
    model, adapter = streams("text+image")
    model.pool = nn.Identity()
    inputs = toy_input(tokens=4), toy_input(tokens=7, seed=1)
    with attach(model, settings(2, 4), adapter=replace(adapter, **how)) as sync:
        model.register_forward_pre_hook(lambda module, args: [module.pool(torch.zeros(2, 8))].clear())
        model(*inputs) if whole else blocks_of(model, *map(model.embed, inputs))
        with pytest.raises(CaptureError, match=said):
            sync.loss()


def masked(target: Any = None, real: Any = None) -> BlockStackAdapter:
    return BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks", target=target, real=real)


class _Asking(Toy):
    def forward(self, x: Tensor, scale: float = 1.0, *, mode: str = "train", **more: Any) -> Tensor:
        return super().forward(x) * scale


def test_arguments_have_their_names_however_they_are_given() -> None:
    calls: list[ForwardCall] = []
    model, x = _Asking(), toy_input()
    adapter = BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks", target=calls.append)
    with attach(model, settings(), adapter=adapter) as sync:
        for run in (
            lambda: model(x),
            lambda: model(x, 2.0, mode="other"),
            lambda: model(scale=3.0, x=x, further="more"),
        ):
            run()
            sync.loss()
    assert all(call.arguments["x"] is x for call in calls)
    assert [{key: value for key, value in call.arguments.items() if key != "x"} for call in calls] == [
        {"scale": 1.0, "mode": "train"},
        {"scale": 2.0, "mode": "other"},
        {"scale": 3.0, "mode": "train", "further": "more"},
    ]


def test_a_grid_is_asked_for_only_when_somebody_wants_it() -> None:
    calls: list[ForwardCall] = []

    def grid(call: ForwardCall) -> tuple[int, int, int]:
        calls.append(call)
        return 1, 1, call.tokens

    model = toy()
    adapter = BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks", embedder="embed", grid=grid)
    with attach(model, settings(), adapter=adapter) as sync:
        model(toy_input())
        sync.loss()
        assert not calls
        model(toy_input())
        capture = sync._capture
        assert capture is not None
        capture.collect(tokens := only_forward(capture))
        assert (tokens.grid, tokens.grid, len(calls)) == ((1, 1, 5), (1, 1, 5), 1)


@pytest.mark.parametrize(("tokens", "kept"), [("target", [0, 2]), ("all", [0, 1, 2, 3])])
def test_masks_of_generated_and_of_real_tokens(tokens: str, kept: list[int]) -> None:
    calls: list[ForwardCall] = []

    def target(call: ForwardCall) -> Tensor:  # (S,): generated, reference, generated, reference, padding
        calls.append(call)
        return torch.tensor([True, False, True, False, True])

    def real(call: ForwardCall) -> Tensor:  # (B, S)
        return torch.tensor([[True] * 4 + [False]] * 2)

    model, x = toy(), toy_input()
    states = toy_states(model, x)
    keep = torch.zeros(5, dtype=torch.bool)
    keep[kept] = True
    with attach(model, settings(layersync_tokens=tokens), adapter=masked(target, real)) as sync:
        model(x)
        torch.testing.assert_close(sync.loss(), -0.5 * mean_cosine(states[0], states[2], keep).detach())
    assert calls[0].model is model
    assert calls[0].arguments["x"] is x
    assert (calls[0].batch, calls[0].tokens) == (2, 5)


@pytest.mark.parametrize("shape", [(4,), (1, 5), (3, 5), (2, 5, 1)])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    model = toy()
    with attach(model, settings(), adapter=masked(lambda call: torch.ones(shape, dtype=torch.bool))) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match="token mask of Toy"):
            sync.loss()


def test_padding_alone_is_an_error_and_not_zero() -> None:
    model = toy()
    nothing = masked(target=lambda call: torch.ones(5).bool(), real=lambda call: torch.zeros(2, 5).bool())
    with attach(model, settings(), adapter=nothing) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match="no generated token"):
            sync.loss()


def test_padding_alone_without_references_is_an_error_and_not_zero() -> None:
    model = toy()
    with attach(model, settings(), adapter=masked(real=lambda call: torch.zeros(2, 5).bool())) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match="no generated token"):
            sync.loss()


def test_the_first_layout_that_fits_is_used() -> None:
    class Fork(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.layers = self.blocks
            del self.blocks

        def forward(self, x: Tensor) -> Tensor:
            state = self.embed(x)
            for block in self.layers:
                state = block(state)
            return state

    adapter = BlockStackAdapter(
        family="toy", model_classes="Toy", stacks="blocks", forks=[ModelLayout(model_classes="Fork", stacks="layers")]
    )
    assert adapter.model_classes == ("Toy", "Fork")
    model = Fork()
    with attach(model, settings(), adapter=adapter) as sync:
        assert str(sync.teacher) == "block 3 of 4 (layers.2)"
        model(toy_input())
        sync.loss()


@pytest.mark.parametrize(
    ("shape", "patch", "grid"), [((2, 4, 8, 12), (1, 2, 2), (1, 4, 6)), ((2, 4, 5, 8, 12), (1, 2, 4), (5, 4, 3))]
)
def test_grids_of_latents(shape: tuple[int, ...], patch: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
    find = latent_grid("latents", lambda model: patch)
    assert find(ForwardCall(SimpleNamespace(), {"latents": torch.zeros(shape)}, 2, 24)) == grid
    assert find(ForwardCall(SimpleNamespace(), {}, 2, 24)) is None


@pytest.mark.parametrize("ratio", [False, True])
def test_an_adapter_written_by_hand(ratio: bool) -> None:
    model, x = toy(), toy_input()
    expected, expected_gradients = toy_term(model, x)
    assert isinstance(OwnAdapter(), Adapter)
    with attach(model, settings(layersync_log_grad_ratio=ratio), adapter=OwnAdapter()) as sync:
        assert (sync.family, str(sync.student)) == ("own", "block 1 (blocks.0)")
        for _ in range(2):
            output = model(x)
            with sync.paused():
                model(toy_input(seed=1))
            loss = sync.loss()
            torch.testing.assert_close(loss, expected)
            (loss + 0 * output.sum()).backward()
            found = {name: grad for name, grad in gradients(model).items() if grad.any()}
            assert_same_gradients(found, expected_gradients)
        assert ("layersync_grad_ratio" in sync.metrics()) == ratio
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model(x)
        with pytest.raises(CaptureError):
            sync.loss()
    assert hooks_on(model) == 0


def test_a_capture_that_lacks_something_is_refused_and_leaves_no_hook() -> None:
    class Lacking(OwnAdapter):
        def capture(self, *arguments: Any) -> Any:
            handle = super().capture(*arguments)
            del handle.policy
            return handle

    model = toy()
    with pytest.raises(ConfigError, match="the capture of adapter own lacks policy"):
        attach(model, settings(), adapter=Lacking())
    assert hooks_on(model) == 0
    attach(model, settings(), adapter=OwnAdapter()).remove()


def test_an_adapter_of_another_protocol_is_refused() -> None:
    class Newer(OwnAdapter):
        api_version = 99

    model = toy()
    with pytest.raises(ConfigError, match="99"):
        attach(model, settings(), adapter=Newer())


def test_a_single_stack_needs_no_list() -> None:
    adapter = BlockStackAdapter(family="toy", model_classes="Toy", stacks=BlockStack("blocks"))
    assert [block.path for block in adapter.list_blocks(toy())][:2] == ["blocks.0", "blocks.1"]


def test_a_path_that_is_no_list_does_not_fit() -> None:
    adapter = BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks.0")
    with pytest.raises(ConfigError, match="does not fit"):
        attach(toy(), settings(1, 2), adapter=adapter)


def test_an_embedder_that_is_not_there_is_refused_at_once() -> None:
    adapter = BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks", embedder="nowhere")
    model = toy()
    with pytest.raises(ConfigError, match="no embedder at nowhere"):
        attach(model, settings(1, 2), adapter=adapter)
    assert hooks_on(model) == 0


def test_where_joined_tokens_stand_is_checked() -> None:
    with pytest.raises(ConfigError, match="all, first or last"):
        BlockStack("blocks", joined="middle")  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["target", "real"])
def test_masks_of_blocks_driven_by_hand(what: str) -> None:
    keep = torch.tensor([True, False, True, False, True])
    model, x = toy(), toy_input()
    told = BlockStackAdapter(
        family="toy",
        model_classes="Toy",
        stacks="blocks",
        **{what: lambda call: ~keep, f"block_{what}": lambda call: keep},
    )
    with attach(model, settings(), adapter=told) as sync:
        states = toy_states(model, x)
        torch.testing.assert_close(sync.loss(), -0.5 * mean_cosine(states[0], states[2], keep))
    with attach(model, settings(), adapter=masked(**{what: lambda call: keep})) as sync:
        toy_states(model, x)
        with pytest.raises(CaptureError, match="its blocks were called one by one"):
            sync.loss()


def test_why_a_model_does_not_fit_is_said_of_the_layouts_of_its_class() -> None:
    adapter = BlockStackAdapter(
        family="toy", model_classes="Toy", stacks="layers", forks=[ModelLayout(model_classes="Fork", stacks="blocks")]
    )
    with pytest.raises(ConfigError, match=r"no list of blocks at layers \(lists in it: blocks\)$"):
        adapter.list_blocks(toy())


def test_blocks_driven_by_hand_tell_by_the_arguments_of_the_first() -> None:
    class Later(ToyBlock):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden)

    model, calls = toy(), list[ForwardCall]()
    model.blocks[1] = Later(8)
    adapter = BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks", block_target=calls.append)
    with attach(model, settings(), adapter=adapter) as sync:
        state = embedded = model.embed(toy_input())
        for block in model.blocks:
            state = block(state)
        sync.loss()
    assert calls[0].block["state"] is embedded
    assert (calls[0].arguments, calls[0].batch, calls[0].tokens) == ({}, 2, 5)


def test_the_class_of_the_first_block_tells_forks_apart() -> None:
    class Special(ToyBlock):
        """A fork's first block."""

    layout = ModelLayout(model_classes="Toy", stacks="blocks", block_class="Special")
    model = toy()
    assert layout.misfit(model) == "blocks.0 is a ToyBlock, not a Special"
    model.blocks[0] = Special(8)
    assert layout.misfit(model) == ""
    assert layout.fits(model)


def test_a_capture_begins_at_once_and_holds_what_was_asked_for() -> None:
    model, x, buffer = toy(), toy_input(), HiddenStateBuffer([1])
    handle = TOY.capture(model, [1], buffer)
    model(x)
    (forward,) = handle.forwards
    handle.collect(forward)
    assert list(buffer) == ["layer_1"]
    torch.testing.assert_close(buffer["layer_1"], toy_states(model, x)[1])
    handle.discard()
    assert (len(handle.forwards), len(buffer)) == (0, 0)
    handle.remove()
    assert hooks_on(model) == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"gridded": "false"}, "has gridded 'false'; give True or False"),
        ({"sequence_first": 2}, "has sequence_first 2; give True or False"),
        ({"only": 3}, "has only 3; it takes a range of block numbers"),
        ({"only": range(5, 0, -1)}, "it takes a range of block numbers from 0"),
        ({"gridded": True, "sequence_first": None}, "is gridded and sets joined, sequence_first or batched"),
    ],
)
def test_a_stack_that_cannot_be_is_refused_when_it_is_made(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        BlockStack("blocks", **given)
