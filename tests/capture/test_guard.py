"""The main loss's own gradient shows which tokens are generated: the tokens that count are compared with it."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.checkpoint import checkpoint

from layersync_core import BlockStack, CaptureError, ConfigError, LayerSyncWarning, attach, list_families, load_tiny
from layersync_core.capture import guard
from layersync_core.capture.graph import tensors_in
from layersync_core.families.registry import get_adapter
from layersync_core.testing import scatter_weights
from tests.test_conformance_kit import BROKEN, ImageFirst, example_inputs

Loss = Callable[[Tensor], Tensor]


def sample(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = output[0] if isinstance(output, (tuple, list)) else output.sample
    return output


def built(family: str, name: str = "tiny_model", **more: Any) -> tuple[nn.Module, dict[str, Any]]:
    tiny: Any = load_tiny(family)
    torch.manual_seed(0)
    model: nn.Module = getattr(tiny, name)()
    scatter_weights(model)
    return model, tiny.example_inputs(model, 2, **more)


def on(**more: Any) -> dict[str, Any]:
    blocks = {"layersync_student_block": 1, "layersync_teacher_block": 2}
    return {"layersync_enabled": True, "layersync_lambda": 0.5, **blocks, **more}


def everything(y: Tensor) -> Tensor:
    return y.float().square().mean()


def first_half(y: Tensor) -> Tensor:
    return y[:, : y.shape[1] // 2].float().square().mean()


def second_half(y: Tensor) -> Tensor:
    return y[:, y.shape[1] // 2 :].float().square().mean()


def step(model: nn.Module, inputs: dict[str, Any], sync: Any, loss: Loss = everything) -> None:
    model.zero_grad()
    sync.apply(loss(sample(model(**inputs)))).backward()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many measurements were made, by their number of tokens."""
    made: list[int] = []
    count = guard.count

    def counting(seen: Tensor, *rest: Any) -> Tensor:
        made.append(seen.shape[1])
        return count(seen, *rest)

    monkeypatch.setattr(guard, "count", counting)
    return made


# What no honest program looks like.
MISREADING = ["text element", "text in the slice", "tail slice"]


@pytest.mark.parametrize("name", MISREADING)
def test_a_broken_adapter_is_found_by_the_first_backward(name: str) -> None:
    torch.manual_seed(0)
    model = ImageFirst()
    scatter_weights(model)
    with attach(model, on(), adapter=BROKEN[name][0]) as sync, pytest.raises(CaptureError, match="main loss"):
        step(model, example_inputs(model, 2), sync)


def wrong(family: str, *stacks: BlockStack) -> Any:
    return replace(get_adapter(family), stacks=stacks)  # type: ignore[type-var]


WRONG_ENDS = {
    "HiDream": wrong(
        "hidream", BlockStack("double_stream_blocks", element=0), BlockStack("single_stream_blocks", joined="last")
    ),
    "Z-Image": wrong("z_image", BlockStack("layers", joined="last")),
    "AuraFlow": wrong(
        "auraflow",
        BlockStack("joint_transformer_blocks", element=1),
        BlockStack("single_transformer_blocks", joined="first"),
    ),
    "Flux.2": wrong(
        "flux2", BlockStack("transformer_blocks", element=1), BlockStack("single_transformer_blocks", joined="first")
    ),
    "Chroma": wrong(
        "chroma",
        BlockStack("transformer_blocks", element=1),
        BlockStack("single_transformer_blocks", joined="first"),
    ),
}


@pytest.mark.parametrize("name", WRONG_ENDS)
def test_the_wrong_end_of_a_joined_sequence_is_an_error(name: str) -> None:
    adapter = WRONG_ENDS[name]
    model, inputs = built(adapter.family)
    with attach(model, on(), adapter=adapter) as sync, pytest.raises(CaptureError, match="wrong end of the sequence"):
        step(model, inputs, sync)


def test_the_text_of_dual_stream_blocks_is_an_error_where_no_embedder_counts() -> None:
    adapter = replace(wrong("flux", BlockStack("transformer_blocks", element=0)), embedder=None, target=None)
    model, inputs = built("flux")
    with (
        attach(model, on(), adapter=adapter) as sync,
        pytest.raises(CaptureError, match=r"none of those that are aligned|another stream than"),
    ):
        step(model, inputs, sync)


def test_an_error_comes_before_the_optimiser_step_and_again_for_who_catches_it() -> None:
    model, inputs = built("z_image")
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [parameter.clone() for parameter in model.parameters()]

    def step_and_update() -> None:
        step(model, inputs, sync)
        optimiser.step()

    with attach(model, on(), adapter=WRONG_ENDS["Z-Image"]) as sync:
        for _ in range(2):
            with pytest.raises(CaptureError, match="wrong end of the sequence"):
                step_and_update()
    torch.testing.assert_close(list(model.parameters()), before, rtol=0, atol=0)


def test_references_before_the_generated_tokens_are_an_error() -> None:
    model, inputs = built("ltx_video", "tiny_2", references=1)
    with attach(model, on()) as sync, pytest.raises(CaptureError, match="layersync_generated_tokens"):
        step(model, inputs, sync, second_half)


def test_a_stream_that_the_loss_leaves_alone_is_an_error() -> None:
    model, inputs = built("ltx_video", "tiny_2")
    with attach(model, on()) as sync, pytest.raises(CaptureError, match="another stream and none of those"):
        sync.apply(everything(model(**inputs)[1])).backward()


# Right where the call, or the user, says which tokens are meant.
def test_clean_tokens_tell_which_references_stand_first() -> None:
    model, inputs = built("ltx_video", "tiny_2", references=1)
    tokens = inputs["hidden_states"].shape[1]
    timestep = torch.full((2, tokens), 0.5)
    timestep[:, : tokens // 2] = 0
    inputs |= {"timestep": timestep, "audio_timestep": torch.full((2,), 0.5)}
    close_to_by_hand(model, inputs, on(), second_half, slice(tokens // 2, None), "transformer_blocks", 0)


@pytest.mark.parametrize(
    ("number", "loss", "span"), [(16, first_half, slice(0, 16)), (-16, second_half, slice(16, 32))]
)
def test_a_user_says_how_many_tokens_are_generated(number: int, loss: Loss, span: slice) -> None:
    model, inputs = built("flux", references=1)
    inputs["img_ids"][:, 0] = 0  # nothing tells the reference from the image
    settings = on(layersync_generated_tokens=number)
    close_to_by_hand(model, inputs, settings, loss, span, "transformer_blocks", 1)


def close_to_by_hand(
    model: nn.Module,
    inputs: dict[str, Any],
    settings: dict[str, Any],
    loss: Loss,
    span: slice,
    stack: str,
    element: int,
) -> None:
    states: list[Tensor] = []
    blocks: Any = model.get_submodule(stack)
    handles = [block.register_forward_hook(lambda _, __, out: states.append(out[element])) for block in blocks[:2]]
    main = loss(sample(model(**inputs)))
    student, teacher = (state[:, span] for state in states)
    (main - 0.5 * cosine_similarity(student, teacher.detach(), dim=-1).mean()).backward()
    wanted = {name: weight.grad for name, weight in model.named_parameters()}
    for handle in handles:
        handle.remove()
    with attach(model, settings) as sync:
        step(model, inputs, sync, loss)
    torch.testing.assert_close({name: weight.grad for name, weight in model.named_parameters()}, wanted)


def test_more_generated_tokens_than_there_are_is_an_error() -> None:
    model, inputs = built("flux")
    with attach(model, on(layersync_generated_tokens=17)) as sync, pytest.raises(ConfigError, match="has 16 tokens"):
        step(model, inputs, sync)


@pytest.mark.parametrize("more", [{"layersync_generated_tokens": 0}, {"layersync_tokens": "all"}])
def test_a_number_of_generated_tokens_that_does_nothing_is_an_error(more: dict[str, Any]) -> None:
    model, _ = built("flux")
    with pytest.raises(ConfigError, match="layersync_generated_tokens"):
        attach(model, on(**{"layersync_generated_tokens": 16, **more}))


# Messages, each printed once.
def like_the_generated(inputs: dict[str, Any]) -> None:
    """Give all tokens the first position id of the generated ones, which come first."""
    ids = inputs["img_ids"]
    ids[..., 0] = ids.flatten(0, -2)[0, 0]


def one_image(inputs: dict[str, Any]) -> None:
    tokens = inputs["hidden_states"].shape[1]
    inputs["img_shapes"] = [[(1, 1, tokens)]] * 2


def no_sizes(inputs: dict[str, Any]) -> None:
    inputs |= {"num_frames": None, "rope_interpolation_scale": None}


UNMARKED: dict[str, tuple[str, Callable[[dict[str, Any]], None], Loss]] = {
    "flux": ("tiny_model", like_the_generated, first_half),
    "flux2": ("tiny_model", like_the_generated, first_half),
    "longcat": ("tiny_model", like_the_generated, first_half),
    "qwen_image": ("tiny_model", one_image, lambda y: y[:, :16].square().mean()),
    "ltx_video": ("tiny_model", no_sizes, second_half),
}


@pytest.mark.parametrize("family", UNMARKED)
def test_references_that_nothing_marks_are_told_with_count_and_place(family: str) -> None:
    name, unmark, loss = UNMARKED[family]
    model, inputs = built(family, name, references=1)
    unmark(inputs)
    with attach(model, on()) as sync:
        with pytest.warns(LayerSyncWarning, match=r"does not see \d+ of the \d+ tokens that are aligned \(positions"):
            step(model, inputs, sync, loss)
        step(model, inputs, sync, loss)  # said once


def test_conditioning_frames_are_told_and_no_error() -> None:
    model, inputs = built("wan")
    with attach(model, on()) as sync:
        with pytest.warns(LayerSyncWarning, match="conditioning frames or a mask"):
            step(model, inputs, sync, lambda y: y[:, :, 1:].square().mean())
        step(model, inputs, sync, lambda y: y[:, :, 1:].square().mean())


def test_masks_that_change_are_told_once() -> None:
    model, inputs = built("flux")
    with attach(model, on()) as sync, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(4):
            mask = torch.rand(2, 16, 1, generator=torch.Generator().manual_seed(seed)) < 0.5
            step(model, inputs, sync, lambda y, mask=mask: (y * mask).square().mean())  # type: ignore[misc]
    assert len([warning for warning in caught if warning.category is LayerSyncWarning]) == 1


def test_a_loss_on_references_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = built("flux", references=1)
    with attach(model, on()) as sync, caplog.at_level(logging.WARNING):
        step(model, inputs, sync)
    assert "the main loss sees 16 tokens beside the 16 that are aligned" in caplog.text


# What nothing is said of. Warnings are errors in these tests.
@pytest.mark.parametrize("family", [name for name in list_families() if name not in ("sdxl", "kandinsky5_video")])
def test_a_family_as_it_is_trained_is_no_finding(family: str, measured: list[int]) -> None:
    model, inputs = built(family)
    with attach(model, on()) as sync:
        for _ in range(2):
            step(model, inputs, sync)
    assert len(measured) == 1


@pytest.mark.parametrize("tokens", ["all", "target"])
def test_known_references_that_the_loss_leaves_out_are_no_finding(tokens: str, measured: list[int]) -> None:
    model, inputs = built("flux", references=1)
    with attach(model, on(layersync_tokens=tokens)) as sync:
        step(model, inputs, sync, first_half)
    assert measured


def test_a_head_that_starts_at_zero_is_asked_again(measured: list[int]) -> None:
    model, inputs = built("flux")
    head: Any = model.get_submodule("proj_out")
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    noise = torch.randn(2, 16, head.out_features)
    optimiser = torch.optim.SGD([*head.parameters()], lr=0.1)
    with attach(model, on()) as sync:
        for _ in range(3):
            step(model, inputs, sync, lambda y: (y - noise).square().mean())
            optimiser.step()
    assert len(measured) == 2


def test_a_head_that_stays_at_zero_is_given_up(measured: list[int], caplog: pytest.LogCaptureFixture) -> None:
    model, inputs = built("dit")
    head: Any = model.get_submodule("proj_out_2")
    nn.init.zeros_(head.weight)
    with attach(model, on()) as sync, caplog.at_level(logging.WARNING):
        for _ in range(260):
            step(model, inputs, sync)
    assert len(measured) == 8
    assert caplog.text.count("which tokens the main loss trains is not measured") == 1


def test_a_sample_without_loss_is_no_finding(measured: list[int]) -> None:
    model, inputs = built("flux")
    with attach(model, on()) as sync:
        step(model, inputs, sync, lambda y: y[:1].square().mean())
    assert measured


def test_gradients_too_small_for_fp16_are_no_error() -> None:
    model, inputs = built("dit")
    with attach(model, on()) as sync, warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerSyncWarning)
        step(model, inputs, sync, lambda y: (y.half() * y.new_tensor(1e-4).half()).square().mean().float())


def test_training_a_controlnet_is_no_finding(measured: list[int]) -> None:
    model, inputs = built("flux")
    model.requires_grad_(False)
    residuals = [torch.randn(2, 16, 32, requires_grad=True) for _ in range(2)]
    weight = nn.Parameter(torch.ones(()))
    with attach(model, on(layersync_student_block=2, layersync_teacher_block=5)) as sync:
        step(model, inputs | {"controlnet_block_samples": [weight * residual for residual in residuals]}, sync)
    assert measured


# When and how it is measured.
def test_once_for_each_layout_and_not_for_each_length(measured: list[int]) -> None:
    model, _ = built("flux")
    with attach(model, on()) as sync:
        for text in (5, 6, 7, 8):
            step(model, built("flux", text=text)[1], sync)
        assert len(measured) == 1
        for _ in range(2):  # the older form of the ids has another axis
            inputs = built("flux")[1]
            step(model, inputs | {"img_ids": inputs["img_ids"][None], "txt_ids": inputs["txt_ids"][None]}, sync)
    assert len(measured) == 2


def test_the_key_switches_it_off(measured: list[int]) -> None:
    model, inputs = built("ltx_video", "tiny_2", references=1)
    with attach(model, on(layersync_guard=False)) as sync:
        step(model, inputs, sync, second_half)
    assert measured == []


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing_the_wrong_end_is_found_and_the_right_one_is_silent(
    reentrant: bool, measured: list[int]
) -> None:
    for adapter in (get_adapter("flux2"), WRONG_ENDS["Flux.2"]):
        model, inputs = built("flux2")
        model.train()
        model.enable_gradient_checkpointing(  # type: ignore[operator]
            gradient_checkpointing_func=partial(checkpoint, use_reentrant=reentrant)
        )
        inputs["hidden_states"].requires_grad_()
        with attach(model, on(), adapter=adapter) as sync:
            if adapter is WRONG_ENDS["Flux.2"]:
                with pytest.raises(CaptureError, match="wrong end"):
                    step(model, inputs, sync)
            else:
                step(model, inputs, sync)
    assert len(measured) == 2


@pytest.mark.parametrize("pair", [(4, 2), (2, 4)])
def test_terms_on_the_last_block_are_told_from_the_main_loss(pair: tuple[int, int], measured: list[int]) -> None:
    model, inputs = built("wan")
    depth = len(model.get_submodule("blocks"))  # type: ignore[arg-type]
    student, teacher = (min(number, depth) for number in pair)
    settings = on(layersync_student_block=student, layersync_teacher_block=teacher)
    with attach(model, settings) as sync, pytest.warns(LayerSyncWarning, match="conditioning frames"):
        step(model, inputs, sync, lambda y: y[:, :, 1:].square().mean())
    assert measured


@pytest.mark.parametrize("family", ["flux", "wan", "ltx_video", "z_image"])
def test_gradients_and_random_state_are_those_without_it(family: str) -> None:
    grads, states = [], []
    for guarded in (True, False):
        model, inputs = built(family)
        depth = len(attach(model, on()).__enter__().blocks)
        model, inputs = built(family)
        with attach(model, on(layersync_guard=guarded, layersync_student_block=depth)) as sync:
            step(model, inputs, sync)
        grads.append({name: weight.grad for name, weight in model.named_parameters()})
        states.append(torch.get_rng_state())
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)
    assert torch.equal(*states)


@pytest.mark.parametrize("family", ["wan", "flux", "dit"])
def test_nothing_of_a_step_is_kept_after_it(family: str) -> None:
    model, inputs = built(family)
    with attach(model, on()) as sync:
        kept: list[ref[Tensor]] = []
        block: Any = model.get_submodule(sync.blocks[0].path)
        block.register_forward_hook(lambda *call: kept.extend(map(ref, tensors_in(call[-1]))))
        gc.collect()
        gc.disable()
        try:
            for _ in range(2):
                step(model, inputs, sync)
                assert kept
                assert not any(tensor() is not None for tensor in kept)
        finally:
            gc.enable()


# Honest programs that a coarser rule would refuse, and misreadings that it would not see.
def frames_as_long_as_the_text(y: Tensor) -> Tensor:
    return y[:, :, 1:].square().mean()


def test_conditioning_frames_of_as_many_tokens_as_there_is_text_are_no_error() -> None:
    model, inputs = built("wan")
    frames = inputs["hidden_states"].shape[2]
    tokens = inputs["hidden_states"][0, 0].numel() // 4
    inputs["encoder_hidden_states"] = torch.randn(2, tokens // frames, inputs["encoder_hidden_states"].shape[-1])
    with attach(model, on()) as sync, pytest.warns(LayerSyncWarning, match="conditioning frames"):
        step(model, inputs, sync, frames_as_long_as_the_text)


def test_a_mask_over_generated_and_reference_tokens_is_no_error() -> None:
    model, inputs = built("flux", references=1)
    mask = (torch.arange(32) % 3 == 0)[None, :, None]
    with attach(model, on()) as sync, pytest.warns(LayerSyncWarning, match="scattered over positions"):
        step(model, inputs, sync, lambda y: (y * mask).square().mean())


def test_padding_alone_is_an_error() -> None:
    adapter = replace(get_adapter("flux"), real=lambda call: torch.arange(call.tokens) >= 8)  # type: ignore[type-var]
    model, inputs = built("flux")
    with attach(model, on(), adapter=adapter) as sync, pytest.raises(CaptureError, match="others in their place"):
        step(model, inputs, sync, first_half)


def test_a_user_s_number_helps_where_the_adapter_finds_none() -> None:
    model, inputs = built("flux", references=1)
    inputs["img_ids"][:, 0] += 1
    with attach(model, on()) as sync, pytest.raises(CaptureError, match="set layersync_generated_tokens to the number"):
        step(model, inputs, sync, first_half)
    with attach(model, on(layersync_generated_tokens=16)) as sync:
        step(model, inputs, sync, first_half)


def test_a_loss_that_overflows_settles_nothing(measured: list[int]) -> None:
    model, inputs = built("flux", references=1)
    inputs["img_ids"][:, 0] = 0
    with attach(model, on()) as sync:
        step(model, inputs, sync, lambda y: first_half(y) * torch.tensor(torch.inf))
        with pytest.warns(LayerSyncWarning, match="16 of the 32 tokens"):
            step(model, inputs, sync, first_half)
    assert len(measured) == 2


def test_each_kind_of_call_is_told_of(measured: list[int]) -> None:
    model, inputs = built("flux", references=1)
    inputs["img_ids"][:, 0] = 0
    older = inputs | {"img_ids": inputs["img_ids"][None], "txt_ids": inputs["txt_ids"][None]}
    with attach(model, on()) as sync:
        for kind in (inputs, older, dict(reversed(inputs.items()))):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", LayerSyncWarning)
                step(model, kind, sync, first_half)
            assert len([item for item in caught if item.category is LayerSyncWarning]) == (
                kind is inputs or kind is older
            )
    assert len(measured) == 2
