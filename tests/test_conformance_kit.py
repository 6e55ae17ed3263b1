"""The kit must fail adapters that are wrong in the ways that train on without a message."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersync_core import BlockStack, BlockStackAdapter
from layersync_core.capture.hooks import Capture
from layersync_core.errors import LayerSyncError
from layersync_core.families.registry import get_adapter, load_tiny
from layersync_core.testing import AdapterConformance
from layersync_core.testing.probe import scatter_weights

WIDTH = 12


class Mixer(nn.Module):
    """Residual layer that mixes tokens a little, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.mix = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.tanh(self.inner(x)) + 0.1 * self.mix(x).mean(dim=1, keepdim=True)


class DualBlock(Mixer):
    """Takes and returns (image, text)."""

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        both = super().forward(torch.cat([image, text], dim=1))
        return both[:, : image.shape[1]], both[:, image.shape[1] :]


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


ORDER = "test_blocks_are_numbered_in_execution_order"
SHAPE = "test_states_have_the_stated_shape"
SAMPLE = "test_tokens_belong_to_the_sample"
TEXT = "test_text_length_leaves_the_tokens_alone"

# What is wrong -> the adapter, and the check that must see it.
BROKEN = {
    "text element": (replace(RIGHT, stacks=[replace(DOUBLE, element=1)], embedder=None), SAMPLE),
    "text element, by its length": (replace(RIGHT, stacks=[replace(DOUBLE, element=1)], embedder=None), TEXT),
    "element that the embedder contradicts": (replace(RIGHT, stacks=[replace(DOUBLE, element=1)]), SHAPE),
    "text in the slice": (replace(RIGHT, stacks=[replace(SINGLE, joined="all")], embedder=None), SAMPLE),
    "text in the slice, by its length": (replace(RIGHT, stacks=[replace(SINGLE, joined="all")], embedder=None), TEXT),
    "tail slice": (replace(RIGHT, stacks=[DOUBLE, replace(SINGLE, joined="last")]), SAMPLE),
    "wrong order": (replace(RIGHT, stacks=[SINGLE, DOUBLE]), ORDER),
    "refiner counted": (replace(RIGHT, stacks=[BlockStack("refiner"), DOUBLE, SINGLE]), ORDER),
    "block left out": (replace(RIGHT, stacks=[SINGLE]), ORDER),
    "wrong width": (replace(RIGHT, width="embed.in_features"), SHAPE),
    "slice in the hook": (made(SlicingAdapter), "test_checkpointing_keeps_the_gradient"),
    "any module": (made(AnyModule), "test_knows_the_model"),
}


class ImageFirstKit(AdapterConformance):
    adapter = RIGHT
    tiny_model = ImageFirst
    example_inputs = staticmethod(example_inputs)
    longer_text = staticmethod(longer_text)
    depth = 4


def family_kit(family: str, blocks: int) -> type[AdapterConformance]:
    tiny = load_tiny(family)

    class FamilyKit(AdapterConformance):
        adapter = get_adapter(family)
        tiny_model = staticmethod(tiny.tiny_model)
        example_inputs = staticmethod(tiny.example_inputs)
        depth = blocks

    return FamilyKit


def failures(
    subject: BlockStackAdapter, only: str = "test_", kit: type[AdapterConformance] = ImageFirstKit
) -> list[str]:
    """Run the kit, or the named check of it, on an adapter and return what failed."""

    class Kit(kit):  # type: ignore[misc, valid-type]
        adapter = subject

    failed = []
    for name in dir(Kit):
        if not name.startswith(only):
            continue
        method = getattr(Kit, name)
        marks = [mark for mark in getattr(method, "pytestmark", []) if mark.name == "parametrize"]
        for arguments in [{marks[0].args[0]: value} for value in marks[0].args[1]] if marks else [{}]:
            torch.manual_seed(0)
            model = Kit.tiny_model().eval()
            scatter_weights(model)
            given = {"model": model, "inputs": Kit.example_inputs(model, 2), **arguments}
            wanted = inspect.signature(method).parameters
            try:
                method(Kit(), **{key: value for key, value in given.items() if key in wanted})
            except (AssertionError, LayerSyncError) as error:
                failed.append(f"{name}{list(arguments.values()) or ''}: {error}")
    return failed


def test_the_right_adapter_passes() -> None:
    assert failures(RIGHT) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_fails(name: str) -> None:
    subject, check = BROKEN[name]
    assert failures(subject, check)


# A family, how many blocks its tiny model has, stacks that are wrong, and the check that must see it.
WRONG_STACKS = {
    "HiDream, tail slice": (
        "hidream",
        5,
        [BlockStack("double_stream_blocks", element=0), BlockStack("single_stream_blocks", joined="last")],
        SAMPLE,
    ),
    "HiDream, text element": ("hidream", 5, [BlockStack("double_stream_blocks", element=1)], SHAPE),
    "Flux, text element": ("flux", 6, [BlockStack("transformer_blocks", element=0)], SHAPE),
    "Flux, single blocks first": (
        "flux",
        6,
        [BlockStack("single_transformer_blocks", element=1), BlockStack("transformer_blocks", element=1)],
        ORDER,
    ),
    "Z-Image, refiners counted": (
        "z_image",
        4,
        [BlockStack("noise_refiner"), BlockStack("layers", joined="first")],
        ORDER,
    ),
    "Z-Image, captions in the slice": ("z_image", 4, [BlockStack("layers", joined="last")], SAMPLE),
}


@pytest.mark.parametrize("name", WRONG_STACKS)
def test_wrong_stacks_of_a_real_family_fail(name: str) -> None:
    family, depth, stacks, check = WRONG_STACKS[name]
    kit = family_kit(family, depth)
    assert failures(kit.adapter, check, kit) == []
    assert failures(replace(kit.adapter, stacks=stacks), check, kit)


def test_the_stand_in_is_checkpointed() -> None:
    model = ImageFirst()
    model.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))
    inputs = example_inputs(model, 2)
    assert "Checkpoint" not in str(model(**inputs).grad_fn)
    assert model.run is not None
