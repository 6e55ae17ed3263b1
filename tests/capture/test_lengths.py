"""Blocks that hold other tokens than went in: refused by name, for every family and in every way of running it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from layersync_core import (
    BlockStack,
    BlockStackAdapter,
    CaptureError,
    ConfigError,
    attach,
    get_adapter,
    load_tiny,
)
from layersync_core.capture.graph import SequenceFirst
from layersync_core.testing import AdapterConformance, scatter_weights
from layersync_core.testing.probe import raw_outputs
from tests.capture.shorter import ROUTED, shortened
from tests.models import (
    FluxTransformer2DModel,
    Toy,
    assert_same_gradients,
    attached,
    gradients,
    gradients_by_autograd,
    mean_cosine,
    old_flux_states,
    randomise,
    settings,
    toy,
    toy_input,
)

ROOT = Path(__file__).parents[2]


def _kits() -> dict[str, type[AdapterConformance]]:
    """Return the conformance classes of all adapters: every class and fork that there is a model for."""
    found = {}
    for file in sorted(ROOT.glob("adapters/*/tests/test_*.py")):
        spec = importlib.util.spec_from_file_location(f"lengths_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, AdapterConformance) and value is not AdapterConformance:
                found[f"{value.family} {name}"] = value
    return found


KITS = _kits()
# Neither an embedder nor the call tells how many tokens there are, or padding behind them is what is lost.
UNCOUNTED = {
    "wan TestDiffSynthWan",
    "wan TestOriginalWanPadded",
    *(name for name in KITS if name.startswith(("sdxl", "fibo TestFibo2"))),
}


class Subject:
    """A model with a pair of blocks, inputs, and what a block of the pair returns being shortened."""

    def __init__(self, kit: type[AdapterConformance]) -> None:
        torch.manual_seed(0)
        self.kit, self.model = kit, kit.tiny_model().eval()
        scatter_weights(self.model)
        self.inputs = kit.example_inputs(self.model, kit.batch_size)
        blocks = kit.adapter._layout(self.model).blocks(self.model)
        # Of the last stack, and of another where that is all there is.
        last = blocks[-1][0]
        of_stack = [index for index, (stack, _, _) in enumerate(blocks) if stack == last]
        of_stage = [index for index, (stack, _, _) in enumerate(blocks) if stack.stage == last.stage]
        self.pair = of_stack[:2] if len(of_stack) > 1 else of_stage[-2:]
        self.stacks = [blocks[index][0] for index in self.pair]
        self.modules = [blocks[index][2] for index in self.pair]
        self.joined = self.stacks[0].joined != "all"
        self.first = bool(self.stacks[0].sequence_first)
        if self.stacks[0].sequence_first is None:  # as the model's samples show it
            with raw_outputs({0: self.modules[0]}) as returned, torch.no_grad():
                self.model(**self.inputs)
            self.first = returned[0][0].shape[0] != kit.batch_size

    def shortened(self, which: tuple[int, ...], by: int) -> Any:
        """Attach while some blocks of the pair return fewer tokens."""
        student, teacher = (index + 1 for index in self.pair)
        blocks = [(self.modules[at], self.stacks[at].element) for at in which]
        return shortened(self.model, (student, teacher), blocks, by, self.kit.adapter, self.first)


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=["student", "teacher", "both"])
@pytest.mark.parametrize("name", KITS)
def test_a_block_with_fewer_tokens_is_refused(name: str, which: tuple[int, ...]) -> None:
    subject = Subject(KITS[name])
    if name in UNCOUNTED and len(which) == 2:
        pytest.skip("nothing tells how many tokens there are")
    with subject.shortened(which, by=1) as sync:
        subject.model(**subject.inputs)
        with pytest.raises(CaptureError, match=ROUTED):
            sync.loss()


JOINED = [name for name in KITS if Subject(KITS[name]).joined]


def test_every_family_with_joined_sequences_is_among_them() -> None:
    families = {name.split()[0] for name in JOINED}
    assert families == {
        "auraflow",
        "chroma",
        "ernie_image",
        "fibo",
        "flux",
        "flux2",
        "flux3",
        "hidream",
        "hunyuan_image",
        "hunyuan_video",
        "krea2",
        "longcat",
        "minimax_music",
        "qwen_image",
        "stable_audio",
        "z_image",
    }


@pytest.mark.parametrize("name", JOINED)
def test_as_many_tokens_lost_as_stand_beside_the_image(name: str) -> None:
    subject, returned = Subject(KITS[name]), []
    hook = subject.modules[0].register_forward_hook(lambda module, args, output: returned.append(output))
    with subject.shortened((), by=0) as sync:
        subject.model(**subject.inputs)
        forward = sync._capture.forwards[0]
        sync._capture.collect(forward)
    hook.remove()
    span, element = forward.spans[subject.pair[0]], subject.stacks[0].element
    whole = span.span if isinstance(span, SequenceFirst) else span
    state = returned[0] if isinstance(returned[0], Tensor) else returned[0][element]
    beside = state.shape[0 if subject.first else -2] - (whole.stop - whole.start)
    if not beside:
        pytest.skip("the image stands alone")
    # What is left is as long as the image alone, or has one token of text for each that is missing.
    for lost in (beside, beside - 1, 1):
        with subject.shortened((0, 1), by=lost) as sync:
            subject.model(**subject.inputs)
            with pytest.raises(CaptureError, match=ROUTED):
                sync.loss()


# The same in every way of running a model, on the quickest of those with a joined sequence.

OLD_FLUX = BlockStackAdapter(
    family="old_flux",
    model_classes="FluxTransformer2DModel",
    stacks=[BlockStack("transformer_blocks", element=1), BlockStack("single_transformer_blocks", joined="last")],
    embedder="x_embedder",
)


def through(run: Callable[..., Any], model: Any, image: Tensor, text: Tensor) -> Tensor:
    """Run every block through a function, such as a checkpoint."""
    image, text = model.x_embedder(image), model.context_embedder(text)
    for block in model.transformer_blocks:
        text, image = run(block, image, text)
    both = torch.cat([text, image], dim=1)
    for block in model.single_transformer_blocks:
        both = run(block, both)
    return both[:, text.shape[1] :]


class Checkpointed(FluxTransformer2DModel):
    reentrant = False

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, img_ids: Tensor | None = None) -> Tensor:
        return through(partial(checkpoint, use_reentrant=self.reentrant), self, hidden_states, encoder_hidden_states)


class Reentrant(Checkpointed):
    reentrant = True


WAYS: dict[str, tuple[type[FluxTransformer2DModel], Callable[..., Any]]] = {
    "model": (FluxTransformer2DModel, lambda model, *inputs: model(*inputs)),
    "checkpointed": (Checkpointed, lambda model, *inputs: model(*inputs)),
    "checkpointed, re-entrant": (Reentrant, lambda model, *inputs: model(*inputs)),
    "one by one": (FluxTransformer2DModel, partial(through, lambda block, *inputs: block(*inputs))),
    "one by one, checkpointed": (FluxTransformer2DModel, partial(through, partial(checkpoint, use_reentrant=False))),
}


@pytest.mark.parametrize("pair", [(1, 2), (1, 3), (2, 4), (3, 4), (4, 1)])
@pytest.mark.parametrize("way", WAYS)
def test_texts_of_any_length_are_right_in_every_way(way: str, pair: tuple[int, int]) -> None:
    torch.manual_seed(0)
    kind, run = WAYS[way]
    model: Any = randomise(kind())
    with attach(model, settings(*pair), adapter=OLD_FLUX) as sync:
        for text in (1, 4, 9, 4):
            inputs = torch.randn(2, 4, 4, requires_grad=True), torch.randn(2, text, 6)
            states = old_flux_states(model, *inputs)
            sync._capture.discard()
            expected = -0.5 * mean_cosine(states[pair[0] - 1], states[pair[1] - 1])
            run(model, *inputs)
            loss = sync.loss()
            torch.testing.assert_close(loss, expected)
            loss.backward()
            assert_same_gradients(gradients(model), gradients_by_autograd(expected, model))


@pytest.mark.parametrize("pair", [(1, 3), (2, 4), (3, 4)])
@pytest.mark.parametrize("way", WAYS)
def test_lost_tokens_are_refused_in_every_way(way: str, pair: tuple[int, int]) -> None:
    kind, run = WAYS[way]
    model: Any = randomise(kind())
    blocks = [(block, None) for block in model.single_transformer_blocks]
    with shortened(model, pair, blocks, by=4, adapter=OLD_FLUX) as sync:
        for text in (4, 9):
            run(model, torch.randn(2, 4, 4, requires_grad=True), torch.randn(2, text, 6))
            with pytest.raises(CaptureError, match=ROUTED):
                sync.loss()
            sync._capture.discard()


def test_a_route_from_the_dual_stack_into_the_joined_one() -> None:
    model: Any = randomise(FluxTransformer2DModel())
    model.transformer_blocks[1].register_forward_hook(lambda module, args, output: (output[0], output[1][:, ::2]))
    for pair, said in (
        ((2, 3), "transformer_blocks.1 returned 2"),
        ((3, 4), "single_transformer_blocks.0 returned .* 7"),
    ):
        with attach(model, settings(*pair), adapter=OLD_FLUX) as sync:
            model(torch.randn(2, 4, 4), torch.randn(2, 5, 6))
            with pytest.raises(CaptureError, match=f"{said}.*{ROUTED}"):
                sync.loss()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("lost", [0, 1])
def test_compiled_models_with_a_block_of_two_streams_that_is_not_captured(lost: int) -> None:
    torch._dynamo.reset()
    model: Any = randomise(FluxTransformer2DModel())
    blocks = [(block, None) for block in model.single_transformer_blocks] if lost else []
    with shortened(model, (3, 4), blocks, by=lost, adapter=OLD_FLUX) as sync:
        run = torch.compile(model, backend="aot_eager", fullgraph=True)
        for text in (5, 6, 7):  # the second length makes the compiler keep it as a variable
            run(torch.randn(2, 4, 4), torch.randn(2, text, 6))
            if lost:
                with pytest.raises(CaptureError, match=rf"{3 + text} tokens where {4 + text} were joined"):
                    sync.loss()
                sync._capture.discard()
            else:
                sync.loss().backward()
    torch._dynamo.reset()


# What adapters say, and where nothing is known.


class Registers(FluxTransformer2DModel):
    """Puts three registers before the joined sequence, which no block of two streams has seen."""

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, img_ids: Tensor | None = None) -> Tensor:
        image, text = self.x_embedder(hidden_states), self.context_embedder(encoder_hidden_states)
        for block in self.transformer_blocks:
            text, image = block(image, text)
        both = torch.cat([torch.ones(len(image), 3, image.shape[-1]), text, image], dim=1)
        for block in self.single_transformer_blocks:
            both = block(both)
        return both[:, -image.shape[1] :]


def test_an_adapter_says_what_the_model_adds() -> None:
    model = randomise(Registers())
    inputs = torch.randn(2, 4, 4), torch.randn(2, 5, 6)
    with attach(model, settings(3, 4), adapter=OLD_FLUX) as sync:
        model(*inputs)
        with pytest.raises(CaptureError, match=r"12 tokens where 9 were joined, 4 of the image and 5 .*joined_tokens"):
            sync.loss()
    told = replace(
        OLD_FLUX, joined_tokens=lambda call: 3 + call.arguments["encoder_hidden_states"].shape[1] + call.tokens
    )
    with attach(model, settings(3, 4), adapter=told) as sync:
        model(*inputs)
        assert sync.loss().requires_grad
    with shortened(model, (3, 4), [(model.single_transformer_blocks[0], None)], by=1, adapter=told) as sync:
        model(*inputs)
        with pytest.raises(CaptureError, match=ROUTED):
            sync.loss()


def test_of_three_streams_nothing_is_concluded() -> None:
    model: Any = randomise(Registers())
    last = model.transformer_blocks[1]
    last.register_forward_hook(lambda module, args, output: (*output, output[0]))
    with attach(model, settings(3, 4), adapter=OLD_FLUX) as sync:
        last.register_forward_hook(lambda module, args, output: output[:2])
        model(torch.randn(2, 4, 4), torch.randn(2, 5, 6))
        assert sync.loss().requires_grad


def counted_by_grid(grid: Any) -> BlockStackAdapter:
    return BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks", grid=grid)


def test_a_grid_tells_that_tokens_are_missing() -> None:
    model = toy()
    with attach(model, settings(), adapter=counted_by_grid(lambda call: (2, 1, 5))) as sync:
        model(toy_input(tokens=5))
        said = r"blocks\.0 and blocks\.2 returned 5 tokens where .* 2 x 1 x 5 = 10 \(exactly 1/2, as on each of 2 ranks"
        with pytest.raises(CaptureError, match=said):
            sync.loss()


def _nobody(call: Any) -> Any:
    raise KeyError("latents")


@pytest.mark.parametrize("grid", [lambda call: (1, 2, 2), lambda call: (1, 1, call.tokens), lambda call: None, _nobody])
def test_a_grid_of_fewer_tokens_or_none_is_no_reason(grid: Any) -> None:
    model = toy()
    with attach(model, settings(), adapter=counted_by_grid(grid)) as sync:
        model(toy_input(tokens=5))
        assert sync.loss().requires_grad


class Stages(Toy):
    """Half of the tokens in the second half of the blocks."""

    def forward(self, x: Tensor) -> Tensor:
        state = self.embed(x)
        for index, block in enumerate(self.blocks):
            state = block(state[:, ::2] if index == 2 else state)
        return self.head(state)


def test_blocks_of_different_lengths_are_named() -> None:
    torch.manual_seed(0)
    model = Stages()
    uncounted = BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks")
    with attach(model, settings(2, 4), adapter=uncounted) as sync:
        model(toy_input(tokens=6))
        with pytest.raises(CaptureError, match=rf"blocks\.1 returned 6 tokens and blocks\.3 3: {ROUTED}"):
            sync.loss()
    with attach(model, settings(3, 4), adapter=uncounted) as sync:
        model(toy_input(tokens=6))
        assert sync.loss().requires_grad


# Where tokens are missed elsewhere, the same is said.


def test_a_mask_of_other_tokens_names_the_cause() -> None:
    adapter = BlockStackAdapter(
        family="toy",
        model_classes="Toy",
        stacks="blocks",
        real=lambda call: torch.ones(2 * call.tokens, dtype=torch.bool),
    )
    model = toy()
    with attach(model, settings(), adapter=adapter) as sync:
        model(toy_input())
        with pytest.raises(CaptureError, match=rf"token mask of Toy has shape \(10,\).*5 tokens.*{ROUTED}"):
            sync.loss()


def test_a_pair_of_other_tokens_names_the_cause() -> None:
    model = toy()
    with attached(model) as sync:
        model(toy_input())
        student, teacher = (sync._buffer.key(index) for index in (0, 2))
        collect = sync._capture.collect

        def shorter(forward: Any) -> None:
            collect(forward)
            sync._buffer[teacher] = sync._buffer[student][:, 1:]

        sync._capture.collect = shorter
        with pytest.raises(
            ConfigError, match=rf"student block 1 .*\(2, 5, 8\) and teacher block 3 .*\(2, 4, 8\); {ROUTED}"
        ):
            sync.loss()


@pytest.mark.parametrize("family", ["wan", "cosmos"])
def test_tokens_that_are_added_to_a_grid_are_told(family: str) -> None:
    tiny: Any = load_tiny(family)
    model = tiny.tiny_model()
    path = get_adapter(family).list_blocks(model)[0].stack
    blocks: Any = model.get_submodule(path)
    for block, after in ((blocks[0], blocks[1]), (blocks[1], blocks[2])):
        block.register_forward_hook(lambda _, __, out: torch.cat([out, out[:, :4]], dim=1))
        after.register_forward_pre_hook(lambda _, args: (args[0][:, :-4], *args[1:]))
    with attach(model, settings(1, 2)) as sync:
        model(**tiny.example_inputs(model, 2))
        with pytest.raises(CaptureError, match="tokens were dropped, added or merged"):
            sync.loss()
