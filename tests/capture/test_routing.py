"""Token routing as in TREAD, in models like diffusers': refused if it affects a pair, otherwise left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from layersync_core import CaptureError, attach
from layersync_core.families.registry import load_tiny
from tests.capture.shorter import ROUTED, shortened
from tests.models import assert_same_gradients, gradients, gradients_by_autograd, mean_cosine, randomise, settings

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
