"""The kit's advice to someone who writes a first adapter, and that following it makes the adapter right."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_core import BlockStack, BlockStackAdapter
from layersync_core.testing import AdapterConformance
from layersync_core.testing.arguments import sample_name
from tests.kits import ORDER, SAMPLE, SHAPE, TEXT, WIDTH, DualBlock, Mixer, advised, failures
from tests.own_capture import OwnAdapter


class Newcomer(nn.Module):
    """A model that someone writes a first adapter for; the form is what its blocks take and return."""

    def __init__(self, form: str = "image") -> None:
        super().__init__()
        self.form, self.extent = form, WIDTH
        self.patchify = nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh())
        self.embed_other, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 4)
        kind = {"image, text": DualBlock, "padded": Alone, "image+reference": Alone}.get(
            form, TokensFirst if form == "tokens first" else Mixer
        )
        self.layers = nn.ModuleList([kind() for _ in range(3)])
        self.tail = nn.ModuleList([Mixer() for _ in range(3)] if form == "in turns" else [])

    def join(self, image: Tensor, other: Tensor) -> Tensor:
        parts = {
            "text+image": [other, image],
            "tokens first": [other, image],
            "image+text": [image, other],
            "text+image+text": [other[:, :3], image, other[:, 3:]],
            "image+reference": [image, other],
            "padded": [image, torch.ones(len(image), 2, WIDTH)],
        }
        joint = torch.cat(parts.get(self.form, [image]), dim=1)
        return joint.transpose(0, 1) if self.form == "tokens first" else joint

    def forward(self, latents: Tensor, other: Tensor) -> Tensor:
        image, other = self.patchify(latents), self.embed_other(other)
        joint = self.join(image, other)
        for number, block in enumerate(self.layers):
            if self.form == "image, text":
                image, other = block(image, other)
            elif self.form == "cross":
                joint = block(joint) + 9 * other.mean(dim=1, keepdim=True)
            else:
                joint = self.layers[2 - number](joint) if self.form == "backwards" else block(joint)
            joint = self.tail[number](joint) if self.form == "in turns" else joint
            joint = block(joint) if self.form == "twice" else joint
        joint = joint.transpose(0, 1) if self.form == "tokens first" else joint
        return self.out(image if self.form == "image, text" else joint)


class TokensFirst(Mixer):
    """Takes and returns (S, B, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class Alone(Mixer):
    """Leaves each token to itself, so that padding moves with nothing, and a reference not with the sample."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.tanh(self.inner(x))


def newcomer_inputs(model: nn.Module, batch_size: int) -> dict[str, Tensor]:
    return {"latents": torch.randn(batch_size, 9, 4), "other": torch.randn(batch_size, 5, 6)}


def newcomer(form: str, **said: Any) -> type[AdapterConformance]:
    class NewcomerKit(AdapterConformance):
        tiny_model = partial(Newcomer, form)
        example_inputs = newcomer_inputs

        @staticmethod
        def longer_text(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            return inputs | {"other": torch.randn(2, 7, 6)}

    for name, value in said.items():
        setattr(NewcomerKit, name, value)
    return NewcomerKit


def first_adapter(**more: Any) -> BlockStackAdapter:
    return BlockStackAdapter(**{"family": "new", "model_classes": "Newcomer", "stacks": "layers"} | more)


# The form of a model whose adapter says stacks="layers" alone -> what the kit says to write instead.
FIRST_TRIES = {
    "text+image": 'stacks=BlockStack("layers", joined="last"), embedder="patchify"',
    "image+text": 'stacks=BlockStack("layers", joined="first"), embedder="patchify"',
    "image, text": 'stacks=BlockStack("layers", element=0)',
    "tokens first": 'stacks=BlockStack("layers", joined="last", sequence_first=True), embedder="patchify"',
}


@pytest.mark.parametrize(
    "text", [{}, {"longer_text": None, "text": ("other",)}, {"longer_text": None}], ids=["longer", "said", "unsaid"]
)
@pytest.mark.parametrize("form", FIRST_TRIES)
def test_a_first_adapter_becomes_right_by_what_the_kit_says(form: str, text: dict[str, Any]) -> None:
    kit = newcomer(form, **text)
    messages = failures(kit, first_adapter())
    assert SAMPLE in {message.split(":")[0] for message in messages}
    for message in messages:
        assert f"write {FIRST_TRIES[form]} in the adapter" in message
        assert failures(kit, first_adapter(**advised(message))) == []


# The form, the rest of the adapter, the check that must see it, and what it must say.
SLIPS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "class": ("image", {"model_classes": "Mine"}, "test_knows", "model_classes names Mine and not Newcomer"),
    "list": ("image", {"stacks": "blocks"}, "test_knows", "no list of blocks at blocks (lists in it: layers, tail)"),
    "no list": (
        "image",
        {"stacks": lambda model: []},
        "test_knows",
        "stacks finds no blocks in it (lists in it: layers",
    ),
    "block class": ("image", {"block_class": "Dual"}, "test_knows", "layers.0 is a Mixer, not a Dual"),
    "no embedder": (
        "text+image",
        {"stacks": BlockStack("layers", joined="last")},
        SAMPLE,
        'write stacks=BlockStack("layers", joined="last"), embedder="patchify" in the adapter',
    ),
    "another embedder": (
        "text+image",
        {"stacks": BlockStack("layers", joined="last"), "embedder": "embed_other"},
        TEXT,
        'write stacks=BlockStack("layers", joined="last"), embedder="patchify" in the adapter',
    ),
    "embedder that is not there": (
        "image",
        {"embedder": "patch_embed"},
        SAMPLE,
        "Newcomer has no embedder at patch_embed; known: patchify, embed_other",
    ),
    "wrong end": (
        "text+image",
        {"stacks": BlockStack("layers", joined="first"), "embedder": "patchify"},
        SAMPLE,
        'write stacks=BlockStack("layers", joined="last") in the adapter',
    ),
    "element of one tensor": (
        "image",
        {"stacks": BlockStack("layers", element=1)},
        SAMPLE,
        'layers.0 returns its tokens alone: write stacks="layers" in the adapter',
    ),
    "between text": ("text+image+text", {}, SAMPLE, "9 of 14 tokens in layers.0 follow latents, neither the first nor"),
    "padding": (
        "padded",
        {},
        SAMPLE,
        "follow nothing: the last 2 of 11 tokens; if they are padding, give the adapter real=",
    ),
    "in turns": ("in turns", {"stacks": ["layers", "tail"]}, ORDER, "take turns or run backwards"),
    "backwards": ("backwards", {}, ORDER, "take turns or run backwards"),
    "twice": ("twice", {}, ORDER, "block 1 of 3 (layers.0) runs more than once in a forward"),
    "width": ("image", {"width": lambda model, block: 7}, SHAPE, 'such as width="extent"'),
    "numbers as mask": ("image", {"real": lambda call: torch.ones(9)}, SHAPE, "real= returns (B, S) or (S,) bool"),
    "mask the wrong way round": (
        "image",
        {"real": lambda call: torch.zeros(9) > 0},
        SHAPE,
        "real= returns True for the tokens that count; it may be the wrong way round",
    ),
    "mask of other tokens": (
        "image",
        {"target": lambda call: torch.ones(4) > 0},
        SHAPE,
        "per sample and token, or",
    ),
    "grid": ("image", {"grid": lambda call: (1, 2, 2)}, SHAPE, "grid= returns (T, H, W) in tokens"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_told_with_its_remedy(slip: str) -> None:
    form, fields, check, remedy = SLIPS[slip]
    messages = failures(newcomer(form), first_adapter(**fields), check)
    assert len(messages) == 1
    assert remedy in messages[0]


def test_what_may_be_references_is_told_so() -> None:
    kit = newcomer("image+reference", text=())
    (message,) = failures(kit, first_adapter(), SAMPLE)
    assert "follow other and not latents: the last 5 of 14 tokens; if they are reference images, give" in message
    generated = first_adapter(target=lambda call: torch.arange(call.tokens) < 9)
    assert failures(kit, generated, SAMPLE) == []


def test_a_sample_of_an_unusual_name_can_be_said() -> None:
    kit = newcomer("image+reference", sample="other", text=())
    (message,) = failures(kit, first_adapter(), SAMPLE)
    assert "follow latents and not other: the first 9 of 14 tokens" in message
    with pytest.raises(AssertionError, match=r"none is a float tensor of 3 axes; name it in the test, sample ="):
        sample_name({"t": torch.ones(2), "zt": torch.ones(2, 4)})
    with pytest.raises(AssertionError, match='sample = "zt" isn\'t one of the inputs latents, other'):
        newcomer("image", sample="zt")()._sample(newcomer_inputs(nn.Identity(), 2))
    assert sample_name({"prompt": torch.ones(2, 50, 6), "zt": torch.ones(2, 9, 4)}) == "zt"


def test_an_adapter_of_another_kind_is_told_what_one_of_ours_would_say() -> None:
    own = OwnAdapter("new", "Newcomer", "layers")
    assert failures(newcomer("image"), own, SAMPLE) == []
    (message,) = failures(newcomer("text+image"), own, SAMPLE)
    fields = 'stacks=BlockStack("layers", joined="last"), embedder="patchify"'
    assert message.endswith(f"a BlockStackAdapter with {fields} takes the right ones")


def test_a_text_that_outweighs_the_sample_is_told_so() -> None:
    (message,) = failures(newcomer("cross", longer_text=None), first_adapter(), SAMPLE)
    assert "follow other and not latents: all 9 tokens; if they are reference images" in message
    (message,) = failures(newcomer("cross"), first_adapter(), SAMPLE)
    assert "the tiny model's text outweighs its sample" in message
