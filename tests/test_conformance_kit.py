"""The kit must fail adapters that are wrong in the ways that train on without a message."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersync_core import BlockStack, BlockStackAdapter
from layersync_core.capture.hooks import Capture
from layersync_core.errors import ConfigError, UnknownFamilyError
from layersync_core.families.registry import get_adapter, load_tiny
from layersync_core.testing import AdapterConformance
from tests.kits import ORDER, SAMPLE, SHAPE, TEXT, WIDTH, DualBlock, Mixer, advised, failures


class ImageFirst(nn.Module):
    """Refines image and text, then runs dual blocks, then single blocks on one sequence [image, text]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.embed_text = nn.Linear(4, WIDTH), nn.Linear(6, WIDTH)
        self.refiner = nn.ModuleList([Mixer()])
        self.double_blocks = nn.ModuleList([DualBlock() for _ in range(2)])
        self.single_blocks = nn.ModuleList([Mixer() for _ in range(2)])
        self.out = nn.Linear(WIDTH, 4)
        self.run: Callable[..., Any] | None = None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any]) -> None:
        self.run = gradient_checkpointing_func

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        run = self.run or (lambda block, *states: block(*states))
        image, text = self.embed(hidden_states), self.embed_text(encoder_hidden_states)
        for block in self.refiner:
            image = run(block, image)
        for block in self.double_blocks:
            image, text = run(block, image, text)
        both = torch.cat([image, text], dim=1)
        for block in self.single_blocks:
            both = run(block, both)
        return self.out(both[:, : image.shape[1]])


def example_inputs(model: nn.Module, batch_size: int, text: int = 5) -> dict[str, Tensor]:
    return {"hidden_states": torch.randn(batch_size, 9, 4), "encoder_hidden_states": torch.randn(batch_size, text, 6)}


def longer_text(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**inputs, "encoder_hidden_states": torch.randn(2, 7, 6)}


DOUBLE = BlockStack("double_blocks", element=0)
SINGLE = BlockStack("single_blocks", joined="first")
RIGHT = BlockStackAdapter(
    family="image_first",
    model_classes="ImageFirst",
    stacks=[DOUBLE, SINGLE],
    embedder="embed",
    width="embed.out_features",
)


class SlicesInTheHook(Capture):
    """Slices and clones inside the hook instead of keeping the block's own object."""

    def store(self, index: int, output: Any) -> None:
        state = output[0] if isinstance(output, tuple) else output
        super().store(index, (state.clone(), None) if isinstance(output, tuple) else state.clone())


class SlicingAdapter(BlockStackAdapter):
    def capture(self, model: nn.Module, layers: Any, buffer: Any) -> Any:
        handle = super().capture(model, layers, buffer)
        handle.__class__ = SlicesInTheHook
        return handle


class AnyModule(BlockStackAdapter):
    def supports_hidden_states(self, model: nn.Module) -> bool:
        return True


def made(kind: type[BlockStackAdapter]) -> BlockStackAdapter:
    fields = ("family", "model_classes", "stacks", "embedder", "width")
    return kind(**{name: getattr(RIGHT, name) for name in fields})


TAKE_DOUBLE = 'write stacks=BlockStack("double_blocks", element=0) in the adapter'
TAKE_SINGLE = 'write stacks=BlockStack("single_blocks", joined="first"), embedder="embed" in the adapter'
TAKE_BOTH = (
    'write stacks=[BlockStack("double_blocks", element=0), BlockStack("single_blocks", joined="first")] in the adapter'
)

# What is wrong -> the adapter, the check that must see it, and what it must say to do.
BROKEN = {
    "text element": (replace(RIGHT, stacks=[replace(DOUBLE, element=1)], embedder=None), SAMPLE, TAKE_DOUBLE),
    "text element, by its length": (
        replace(RIGHT, stacks=[replace(DOUBLE, element=1)], embedder=None),
        TEXT,
        TAKE_DOUBLE,
    ),
    "element that the embedder contradicts": (replace(RIGHT, stacks=[replace(DOUBLE, element=1)]), SHAPE, TAKE_DOUBLE),
    "text in the slice": (replace(RIGHT, stacks=[replace(SINGLE, joined="all")], embedder=None), SAMPLE, TAKE_SINGLE),
    "text in the slice, by its length": (
        replace(RIGHT, stacks=[replace(SINGLE, joined="all")], embedder=None),
        TEXT,
        TAKE_SINGLE,
    ),
    "tail slice": (replace(RIGHT, stacks=[DOUBLE, replace(SINGLE, joined="last")]), SAMPLE, TAKE_BOTH),
    "wrong order": (replace(RIGHT, stacks=[SINGLE, DOUBLE]), ORDER, TAKE_BOTH),
    "refiner counted": (replace(RIGHT, stacks=[BlockStack("refiner"), DOUBLE, SINGLE]), ORDER, TAKE_BOTH),
    "block left out": (replace(RIGHT, stacks=[SINGLE]), ORDER, TAKE_BOTH),
    "wrong width": (replace(RIGHT, width="embed.in_features"), SHAPE, 'such as width="embed.out_features"'),
    "slice in the hook": (
        made(SlicingAdapter),
        "test_checkpointing_keeps_the_gradient",
        "must store the very object that the block returned and slice it only in collect()",
    ),
    "any module": (
        made(AnyModule),
        "test_knows_the_model",
        "only where one of the model's classes is in model_classes",
    ),
}


class ImageFirstKit(AdapterConformance):
    adapter = RIGHT
    tiny_model = ImageFirst
    example_inputs = example_inputs
    longer_text = longer_text
    depth = 4


def family_kit(name: str, blocks: int) -> type[AdapterConformance]:
    class FamilyKit(AdapterConformance):
        family = name
        depth = blocks

    return FamilyKit


def test_the_right_adapter_passes() -> None:
    assert failures(ImageFirstKit, RIGHT) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_fails_and_its_message_says_what_to_write(name: str) -> None:
    subject, check, remedy = BROKEN[name]
    (message,) = failures(ImageFirstKit, subject, check)
    assert remedy in message
    if "write stacks" in remedy:
        assert failures(ImageFirstKit, replace(subject, **advised(message)), check) == []


# A family, how many blocks its tiny model has, stacks that are wrong, the check that must see it, and the right ones.
WRONG_STACKS = {
    "HiDream, tail slice": (
        "hidream",
        5,
        [BlockStack("double_stream_blocks", element=0), BlockStack("single_stream_blocks", joined="last")],
        SAMPLE,
        'stacks=[BlockStack("double_stream_blocks", element=0), BlockStack("single_stream_blocks", joined="first")]',
    ),
    "HiDream, text element": (
        "hidream",
        5,
        [BlockStack("double_stream_blocks", element=1)],
        SHAPE,
        'stacks=BlockStack("double_stream_blocks", element=0)',
    ),
    "Flux, text element": (
        "flux",
        6,
        [BlockStack("transformer_blocks", element=0)],
        SHAPE,
        'stacks=BlockStack("transformer_blocks", element=1)',
    ),
    "Flux, single blocks first": (
        "flux",
        6,
        [BlockStack("single_transformer_blocks", element=1), BlockStack("transformer_blocks", element=1)],
        ORDER,
        'stacks=[BlockStack("transformer_blocks", element=1), BlockStack("single_transformer_blocks", element=1)]',
    ),
    "Z-Image, refiners counted": (
        "z_image",
        4,
        [BlockStack("noise_refiner"), BlockStack("layers", joined="first")],
        ORDER,
        'stacks=BlockStack("layers", joined="first")',
    ),
    "Z-Image, captions in the slice": (
        "z_image",
        4,
        [BlockStack("layers", joined="last")],
        SAMPLE,
        'stacks=BlockStack("layers", joined="first")',
    ),
}


@pytest.mark.parametrize("name", WRONG_STACKS)
def test_wrong_stacks_of_a_real_family_fail_and_the_right_ones_are_said(name: str) -> None:
    family, depth, stacks, check, right = WRONG_STACKS[name]
    if family == "flux" and "single" in right and version("diffusers") < "0.34":
        pytest.skip("diffusers 0.33 joins text and image in front of the single-stream blocks")
    kit = family_kit(family, depth)
    assert failures(kit, kit.adapter, check) == []
    (message,) = failures(kit, replace(kit.adapter, stacks=stacks), check)
    assert f"write {right} in the adapter" in message


def test_the_stand_in_is_checkpointed() -> None:
    model = ImageFirst()
    model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))
    inputs = example_inputs(model, 2)
    assert "Checkpoint" not in str(model(**inputs).grad_fn)
    assert model.run is not None


@pytest.mark.parametrize("kind", [ValueError, NotImplementedError])
def test_a_model_that_says_that_it_supports_no_checkpointing_is_left_out(kind: type[Exception]) -> None:
    class Refusing(ImageFirst):
        def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable[..., Any]) -> None:
            raise kind(text)

    class Kit(AdapterConformance):
        adapter = replace(RIGHT, model_classes="Refusing")

    model = Refusing()
    check = partial(Kit().test_checkpointing_keeps_the_gradient, model, mode="non-reentrant")
    text = "Refusing does not support gradient checkpointing."
    with pytest.raises(pytest.skip.Exception, match="does not support gradient checkpointing"):
        check(inputs=example_inputs(model, 2))
    text = "something else"
    with pytest.raises(kind, match=text):
        check(inputs=example_inputs(model, 2))


def test_a_kit_that_says_its_family_alone_finds_the_rest() -> None:
    kit = family_kit("pixart", 4)
    assert kit.adapter is get_adapter("pixart")
    assert kit.tiny_model is load_tiny("pixart").tiny_model
    assert kit.example_inputs is load_tiny("pixart").example_inputs
    assert failures(kit, kit.adapter, SHAPE) == []


def test_the_sample_is_the_one_that_the_family_says(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"zt": torch.ones(1, 2, 2), "latents": torch.ones(1, 9, 9)}
    assert family_kit("pixart", 4)()._sample(inputs) == "latents"  # the family's is not among them
    monkeypatch.setattr(load_tiny("pixart"), "sample", "zt")
    kit = family_kit("pixart", 4)
    assert kit()._sample(inputs) == "zt"
    assert kit()._sample({"x": torch.ones(1, 2, 2)}) == "x"


def test_what_a_kit_says_itself_comes_before_its_family() -> None:
    class Other(family_kit("pixart", 4)):  # type: ignore[misc]
        adapter = RIGHT
        tiny_model = ImageFirst

    assert Other.adapter is RIGHT
    assert isinstance(Other().tiny_model(), ImageFirst)
    assert Other.example_inputs is load_tiny("pixart").example_inputs


@pytest.mark.parametrize("attribute", ["adapter", "tiny_model", "example_inputs"])
def test_a_kit_without_a_family_says_what_is_missing(attribute: str) -> None:
    class Nothing(AdapterConformance):
        pass

    with pytest.raises(ConfigError, match=f"Nothing has neither family nor {attribute}: write family = "):
        getattr(Nothing, attribute)


def test_a_family_that_cannot_be_found_is_told_with_its_remedy() -> None:
    with pytest.raises(UnknownFamilyError, match=r"FamilyKit: unknown family 'mine'; .*pip install -e \."):
        _ = family_kit("mine", 4).adapter


def test_a_tiny_module_that_lacks_something_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(load_tiny("sana"), "example_inputs")
    with pytest.raises(ConfigError, match=r"sana\.tiny has no example_inputs; write"):
        _ = family_kit("sana", 4).example_inputs
