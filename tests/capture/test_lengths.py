"""Blocks that hold other tokens than went in: refused by name, for every family and in every way of running it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.utils.checkpoint import checkpoint

from layersync_core import Attachment, BlockStack, BlockStackAdapter, CaptureError, ConfigError, attach
from layersync_core.capture.lengths import refuse_sharded
from layersync_core.families.registry import load_tiny
from layersync_core.testing import AdapterConformance, scatter_weights
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
from tests.run.processes import SCRIPTS, run

ROOT = Path(__file__).parents[2]
ROUTED = "tokens were dropped, added or merged between blocks .*TREAD.*split over ranks"


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
                found[f"{file.parts[-3]} {name}"] = value
    return found


KITS = _kits()
# Neither an embedder nor the call tells how many tokens there are, or padding behind them is what is lost.
UNCOUNTED = {"wan TestDiffSynthWan", "wan TestOriginalWanPadded", *(name for name in KITS if name.startswith("sdxl"))}


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
        of_stack = [index for index, (stack, _, _) in enumerate(blocks) if stack.path == last.path]
        of_stage = [index for index, (stack, _, _) in enumerate(blocks) if stack.stage == last.stage]
        self.pair = of_stack[:2] if len(of_stack) > 1 else of_stage[-2:]
        self.stacks = [blocks[index][0] for index in self.pair]
        self.modules = [blocks[index][2] for index in self.pair]
        self.joined = self.stacks[0].joined != "all"

    def shortened(self, which: tuple[int, ...], by: int) -> Any:
        """Attach while some blocks of the pair return fewer tokens."""
        student, teacher = (index + 1 for index in self.pair)
        blocks = [(self.modules[at], self.stacks[at].element) for at in which]
        return shortened(self.model, (student, teacher), blocks, by, self.kit.adapter)


@contextmanager
def shortened(
    model: nn.Module, pair: tuple[int, int], blocks: list[tuple[nn.Module, Any]], by: int, adapter: Any = None
) -> Iterator[Attachment]:
    """Attach while some blocks return fewer tokens, which come back before the model goes on.

    Args:
        model: The model.
        pair: Student and teacher, counted from 1.
        blocks: Blocks, and where the tokens stand among what they return.
        by: How many tokens are missing.
        adapter: The adapter, if it is not the family's.
    """
    saved: dict[nn.Module, Any] = {}

    def drop(element: Any, module: nn.Module, args: Any, output: Any) -> Any:
        saved[module] = output
        if isinstance(output, Tensor):
            return output[..., :-by, :]
        position, *name = element if isinstance(element, tuple) else (element,)
        state = output[position]
        shorter = replace(state, x=state.x[..., :-by, :]) if name else state[..., :-by, :]
        return tuple(shorter if index == position else item for index, item in enumerate(output))

    hooks = [module.register_forward_hook(partial(drop, element)) for module, element in blocks]
    with attach(model, settings(*pair), adapter=adapter) as sync:
        hooks += [module.register_forward_hook(lambda module, *call: saved[module]) for module, _ in blocks]
        yield sync
    for hook in hooks:
        hook.remove()


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
    assert families == {"auraflow", "chroma", "flux", "flux2", "hidream", "hunyuan_video", "longcat", "z_image"}


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
    beside = (returned[0] if isinstance(returned[0], Tensor) else returned[0][element]).shape[-2] - (
        span.stop - span.start
    )
    if not beside:
        pytest.skip("the image stands alone")
    # What is left is as long as the image alone, or has one token of text for each that is missing.
    for lost in (beside, beside - 1, 1):
        with subject.shortened((0, 1), by=lost) as sync:
            subject.model(**subject.inputs)
            with pytest.raises(CaptureError, match=ROUTED):
                sync.loss()


# Routing as TREAD has it, in models as diffusers has them.

# Overrides of the tiny model's config: four single-stream blocks, behind so many of two streams.
DEEP: dict[str, Callable[[int], dict[str, Any]]] = {
    "auraflow": lambda dual: {"num_mmdit_layers": dual, "num_single_dit_layers": 4},
    "chroma": lambda dual: {"num_layers": dual, "num_single_layers": 4},
    "flux2": lambda dual: {"num_layers": dual, "num_single_layers": 4},
    "hidream": lambda dual: {
        "num_layers": dual,
        "num_single_layers": 4,
        "llama_layers": [0, 1, 1, 0, 1, 0][-dual - 4 :],
    },
    "z_image": lambda dual: {},
}
SINGLES = {"hidream": "single_stream_blocks", "z_image": "layers"}


def deep(family: str, text: int = 5, dual: int = 2) -> tuple[Any, dict[str, Any], list[nn.Module]]:
    """Return a model, inputs of 16 image tokens, and its blocks of one stream."""
    torch.manual_seed(0)
    tiny: Any = load_tiny(family)
    small = tiny.tiny_model()
    model = randomise(type(small).from_config({**small.config, **DEEP[family](dual)})).eval()
    singles = model.get_submodule(SINGLES.get(family, "single_transformer_blocks"))
    return model, tiny.example_inputs(model, 2, text=text), list(singles)


def route(blocks: list[nn.Module], kept: int, image_first: bool = False) -> None:
    """Let some blocks see only some of their 16 image tokens, at random places; the others pass them by."""
    saved: dict[str, Tensor] = {}
    some = torch.randperm(16, generator=torch.Generator().manual_seed(3))[:kept].sort().values

    def positions(whole: int) -> Tensor:
        text = torch.arange(whole - 16)
        return torch.cat([some, 16 + text] if image_first else [text, whole - 16 + some])

    def shorten(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(shorten, value))
        if isinstance(value, Tensor):
            whole = saved["all"].shape[1]
            for axis, size in enumerate(value.shape):
                value = value.index_select(axis, positions(whole)) if size == whole else value
        return value

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        if module is blocks[0]:
            saved["all"] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        return shorten(args), {name: shorten(value) for name, value in kwargs.items()}

    def behind(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return saved["all"].index_copy(1, positions(saved["all"].shape[1]), output)

    for block in blocks:
        block.register_forward_pre_hook(before, with_kwargs=True)
    blocks[-1].register_forward_hook(behind)


ROUTES = [
    ("flux2", 5, 8, (3, 4)),
    ("flux2", 8, 8, (3, 4)),  # as many are lost as there is text
    ("flux2", 32, 12, (3, 4)),
    ("flux2", 32, 8, (3, 6)),  # the teacher has all again
    *(("auraflow", text, 8, pair) for text in (1, 9) for pair in ((3, 4), (2, 3), (4, 6))),
    *(("chroma", text, 8, pair) for text in (1, 9) for pair in ((3, 4), (2, 3), (4, 6))),
    *(("z_image", 5, kept, pair) for kept in (15, 4) for pair in ((1, 2), (2, 4))),
]


@pytest.mark.parametrize(("family", "text", "kept", "pair"), ROUTES)
def test_a_pair_that_routing_reaches_is_refused(family: str, text: int, kept: int, pair: tuple[int, int]) -> None:
    model, inputs, singles = deep(family, text)
    route(singles[:3], kept, image_first=family == "z_image")
    with attach(model, settings(*pair)) as sync:
        model(**inputs)
        with pytest.raises(CaptureError, match=rf"returned .*{ROUTED}"):
            sync.loss()


@pytest.mark.parametrize("family", ["flux2", "chroma", "auraflow"])
def test_a_pair_that_routing_leaves_alone_has_its_value(family: str) -> None:
    model, inputs, singles = deep(family, text=9)
    route(singles[:3], kept=8)
    seen: dict[str, Tensor] = {}
    dual = model.joint_transformer_blocks if family == "auraflow" else model.transformer_blocks
    dual[1].register_forward_hook(lambda module, args, output: seen.update(student=output[1]))
    singles[3].register_forward_hook(lambda module, args, output: seen.update(teacher=output[:, -16:]))
    with attach(model, settings(2, 6)) as sync:
        model(**inputs)
        expected = -0.5 * mean_cosine(seen["student"], seen["teacher"])
        wanted = gradients_by_autograd(expected, model)
        loss = sync.loss()
        loss.backward()
    torch.testing.assert_close(loss, expected)
    assert_same_gradients(gradients(model), wanted)


@pytest.mark.parametrize("text", [1, 8, 40])
@pytest.mark.parametrize("family", DEEP)
def test_without_dual_stream_blocks_the_call_says_what_is_joined(family: str, text: int) -> None:
    model, inputs, singles = deep(family, text, dual=0)
    seen: list[Tensor] = []
    image = slice(0, 16) if family in ("hidream", "z_image") else slice(-16, None)
    hooks = [block.register_forward_hook(lambda *call: seen.append(call[2][:, image])) for block in singles[:2]]
    with attach(model, settings(1, 2)) as sync:
        model(**inputs)
        torch.testing.assert_close(sync.loss(), -0.5 * mean_cosine(*seen))
    for hook in hooks:
        hook.remove()
    with shortened(model, (1, 2), [(block, None) for block in singles[:2]], by=1) as sync:
        model(**inputs)
        with pytest.raises(CaptureError, match=ROUTED):
            sync.loss()


def test_padding_in_a_batch_of_two_sizes_is_nothing_lost() -> None:
    model, _, singles = deep("z_image")
    inputs = load_tiny("z_image").example_inputs(model, 2, sizes=((12, 16), (4, 6)), text=5)
    inputs["cap_feats"][1] = torch.randn(70, 10)  # the smaller image has the longer sequence
    with attach(model, settings(1, 2)) as sync:
        model(**inputs)
        assert sync.loss() < 0
    with shortened(model, (1, 2), [(block, None) for block in singles[:2]], by=1) as sync:
        model(**inputs)
        with pytest.raises(CaptureError, match=r"returned a sequence of 127 tokens where 128 were joined"):
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


# Sequences that are split over ranks.


@pytest.mark.slow
def test_context_parallelism_on_two_ranks_is_refused(tmp_path: Path) -> None:
    families = ("wan", "flux", "qwen_image")
    run([sys.executable, str(SCRIPTS / "split_sequence.py"), str(tmp_path), *families])
    for family in families:
        before, after = (tmp_path / family).read_text().split("\n")
        assert "diffusers' context parallelism splits the tokens" in before
        assert after == before


def test_context_parallelism_is_known_by_its_marks() -> None:
    model, registry = toy(), SimpleNamespace(hooks={"layerwise_casting": None})
    model.blocks[0]._diffusers_hook = registry
    model._parallel_config = SimpleNamespace(context_parallel_config=None, tensor_parallel_config=object())
    with attached(model) as sync:
        model(toy_input())
        sync.loss()
        registry.hooks["cp_input---blocks.0"] = None  # as without the model's enable_parallelism
        for _ in range(2):
            model(toy_input())
            with pytest.raises(CaptureError, match=r"context parallelism splits the tokens of Toy.*over ranks"):
                sync.loss()
            sync._capture.discard()
            registry.hooks.clear()
            model._parallel_config.context_parallel_config = object()


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A mesh of two axes on one rank, of which the second says that it has two."""
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    mesh, size = init_device_mesh("cpu", (1, 1)), DeviceMesh.size
    yield (
        mesh,
        lambda: monkeypatch.setattr(DeviceMesh, "size", lambda mesh, axis=None: axis + 1 if axis else size(mesh)),
    )
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("shape", "placements", "refused"),
    [
        ((2, 5, 8), (Replicate(), Replicate()), False),
        ((2, 5, 8), (Shard(0), Shard(2)), False),
        ((2, 5, 8), (Shard(1), Shard(0)), False),  # one rank has all tokens
        ((2, 5, 8), (Replicate(), Shard(1)), True),
        ((2, 5, 8), (Shard(0), Shard(1)), True),
        ((5, 8), (Replicate(), Shard(1)), False),
        ((5, 8), (Replicate(), Shard(0)), True),
    ],
)
def test_tokens_that_are_sharded_over_ranks_are_refused(mesh: Any, shape: Any, placements: Any, refused: bool) -> None:
    mesh, as_if_two = mesh
    state = distribute_tensor(torch.randn(shape), mesh, placements)
    as_if_two()
    if not refused:
        refuse_sharded(state, "blocks.0")
        return
    said = r"blocks\.0 returned a DTensor whose tokens are sharded over ranks"
    with pytest.raises(CaptureError, match=said):
        refuse_sharded(state, "blocks.0")
    if len(shape) == 3:
        model = toy()
        model.blocks[0].register_forward_hook(lambda module, args, output: state)
        with attached(model) as sync:
            model.blocks[0].register_forward_hook(lambda module, args, output: args[0])
            model(toy_input())
            with pytest.raises(CaptureError, match=said):
                sync.loss()


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
