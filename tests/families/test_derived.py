"""A class derived from a known one is that model, or another that only looks like it: decided at start-up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from layersync_core import (
    BlockStackAdapter,
    CaptureError,
    ConfigError,
    attach,
    load_tiny,
    resolve,
)
from layersync_core.capture.layout import ModelLayout
from layersync_core.errors import MisfitError
from tests import fakes
from tests.discovery.configurations import configuration, names
from tests.models import TOY, Toy, ToyBlock, hooks_on, settings, toy_input
from tests.run.conftest import launch as launch
from tests.run.inside import Launch, main_loss, sgd

LAYOUT = BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks", derived_block="ToyBlock")


class OtherBlock(nn.Module):
    """A block of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, state: Tensor) -> Tensor:
        return state + self.linear(state)


class FinerBlock(ToyBlock):
    """A block of the same kind."""


class Other(Toy):
    """As musubi-tuner derives its QwenImage21 from its QwenImageTransformer2DModel."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(OtherBlock() for _ in range(4))


class Finer(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FinerBlock(8) for _ in range(4))


class NeedsMore(Toy):
    def forward(self, x: Tensor, image_mask: Tensor, *, scale: float) -> Tensor:  # type: ignore[override]
        return super().forward(x * image_mask * scale)


class TakesMore(Toy):
    def forward(self, x: Tensor, image_mask: Tensor | None = None, **more: Any) -> Tensor:
        return super().forward(x)


class Renamed(Toy):
    """As FSDP2 renames a class."""


def renamed_with_other_blocks() -> Toy:
    model = Renamed()
    model.blocks = nn.ModuleList(OtherBlock() for _ in range(4))
    return model


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Other, "Other is derived from Toy, but is another model: blocks.0 is a OtherBlock, not a ToyBlock"),
        (NeedsMore, "NeedsMore is derived from Toy, but is another model: its forward needs image_mask, scale"),
    ],
)
def test_another_model_is_refused_by_name(model: Callable[[], Toy], why: str) -> None:
    found = model()
    with pytest.raises(MisfitError) as error:
        attach(found, settings(), adapter=LAYOUT)
    said = f"adapter toy does not fit this {type(found).__name__}: {why}; for a model of your own pass adapter=…"
    assert str(error.value) == said
    assert hooks_on(found) == 0
    own = BlockStackAdapter(family="mine", model_classes=type(found).__name__, stacks="blocks")
    with attach(found, settings(), adapter=own) as sync:
        assert sync.family == "mine"


@pytest.mark.parametrize("model", [Toy, Finer, TakesMore, Renamed, renamed_with_other_blocks])
def test_the_same_model_is_taken(model: Callable[[], Toy]) -> None:
    with attach(found := model(), settings(), adapter=LAYOUT) as sync:
        sync.apply(found(toy_input()).square().mean()).backward()


def test_without_a_declaration_other_blocks_are_taken() -> None:
    with attach(Other(), settings(), adapter=TOY):
        pass


@pytest.mark.parametrize("wrap", [lambda block: torch.compile(block, backend="eager"), checkpoint_wrapper])
@pytest.mark.parametrize("field", ["block_class", "derived_block"])
def test_wrapped_blocks_are_known_by_what_is_inside(wrap: Callable[[nn.Module], nn.Module], field: str) -> None:
    model = Finer()
    model.blocks = nn.ModuleList(wrap(block) for block in model.blocks)
    layout = ModelLayout(model_classes="Toy", stacks="blocks", **{field: "ToyBlock"})
    assert layout.misfit(model) == ""


def test_a_base_without_a_forward_says_nothing_of_arguments() -> None:
    class Base(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([ToyBlock(8)])

    class WithForward(Base):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert ModelLayout(model_classes="Base", stacks="blocks").misfit(WithForward()) == ""


def test_the_nearest_class_decides_among_the_layouts_of_a_family() -> None:
    fork = ModelLayout(model_classes="Other", stacks="blocks", derived_block="OtherBlock")
    adapter = BlockStackAdapter(
        family="toy", model_classes="Toy", stacks="blocks", derived_block="ToyBlock", forks=[fork]
    )

    class OthersWithTheBlocksOfToys(Other):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(ToyBlock(8) for _ in range(4))

    assert all(map(adapter.supports_hidden_states, (Toy(), Other())))
    model = OthersWithTheBlocksOfToys()
    assert not adapter.supports_hidden_states(model)
    with pytest.raises(MisfitError, match=r"is derived from Other, but is another model: .* not a OtherBlock"):
        attach(model, settings(), adapter=adapter)


@pytest.mark.parametrize(("family", "name"), names())
def test_every_class_of_every_family_refuses_one_derived_from_it_with_other_blocks(family: str, name: str) -> None:
    kit = configuration(family, name).kit
    model: Any = kit.tiny_model()
    base, adapter = type(model), kit.adapter
    layout = next(layout for layout in adapter.layouts if layout.fits(model))

    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError

    model.__class__ = type("Derived", (base,), {"__init__": make})
    assert layout.fits(model), "with the same blocks"
    path = layout.blocks(model)[0][1]
    stack, _, index = path.rpartition(".")
    model.get_submodule(stack)[int(index)] = OtherBlock()
    with pytest.raises(MisfitError, match=rf"Derived.* {path} is a OtherBlock, not a "):
        attach(model, settings(), family=adapter.family)


def test_under_run_it_is_named(launch: Launch) -> None:
    launch()
    base = type(load_tiny("dit").tiny_model())

    class OtherDiT(base):  # type: ignore[misc, valid-type]
        def __init__(self, **config: Any) -> None:
            super().__init__(**config)
            self.transformer_blocks = nn.ModuleList(OtherBlock() for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.transformer_blocks:
                x = block(x)
            return x

    model = OtherDiT(num_attention_heads=1, attention_head_dim=8, num_layers=1, sample_size=8)
    optimiser = sgd(model)
    main_loss(model(torch.randn(2, 3, 8))).backward()
    with pytest.raises(CaptureError, match="OtherDiT is derived from DiTTransformer2DModel, but is another model"):
        optimiser.step()


class TestWhoClaimsTheDerivedClass:
    @pytest.fixture(autouse=True)
    def somebodys(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fakes.adapter("somebodys", "somebodys_qwen", "QwenImage21").install(tmp_path, monkeypatch)

    def test_is_asked_before_the_base_s_family(self) -> None:
        base = type(fakes.model("QwenImageTransformer2DModel"))
        derived = fakes.model("QwenImage21", base)
        assert resolve(derived).family == "somebodys_qwen"
        assert resolve(fakes.model("FSDPQwenImage21", type(derived))).family == "somebodys_qwen"
        assert resolve(fakes.model("FSDPQwenImage", base)).family == "qwen_image"
        assert resolve(fakes.model("QwenImageTransformer2DModel")).family == "qwen_image"

    def test_two_who_claim_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        fakes.adapter("others", "others_qwen", "QwenImage21").install(tmp_path / "more", monkeypatch)
        derived = fakes.model("QwenImage21", type(fakes.model("QwenImageTransformer2DModel")))
        with pytest.raises(ConfigError, match="QwenImage21 is claimed by"):
            resolve(derived)
