"""From the blocks' outputs to tokens: which are image tokens, and which of these are generated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from layersync_core import CaptureError, attach
from tests.models import (
    FluxTransformer2DModel,
    assert_same_gradients,
    build,
    generated,
    gradients,
    gradients_by_autograd,
    mean_cosine,
    old_flux_states,
    randomise,
    settings,
    states_by_hand,
)


def old_flux_inputs(references: int, text: int = 5, batch_axis: bool = False) -> dict[str, Tensor]:
    torch.manual_seed(0)
    ids = torch.cat([torch.full((4,), float(min(image, 1))) for image in range(1 + references)])
    img_ids = torch.stack([ids, torch.arange(len(ids)), torch.zeros(len(ids))], dim=-1)
    return {
        "hidden_states": torch.randn(2, len(ids), 4),
        "encoder_hidden_states": torch.randn(2, text, 6),
        "img_ids": img_ids.expand(2, -1, -1) if batch_axis else img_ids,
    }


@pytest.mark.parametrize("pair", [(1, 2), (1, 3), (2, 4), (3, 4), (4, 1)])
@pytest.mark.parametrize("tokens", ["target", "all"])
@pytest.mark.parametrize("batch_axis", [False, True], ids=["(S, 3) ids", "(B, S, 3) ids"])
def test_single_blocks_of_older_flux_return_text_and_image_as_one(
    pair: tuple[int, int], tokens: str, batch_axis: bool
) -> None:
    model = randomise(FluxTransformer2DModel())
    inputs = old_flux_inputs(references=1, batch_axis=batch_axis)
    states = old_flux_states(model, inputs["hidden_states"], inputs["encoder_hidden_states"])
    keep = torch.tensor([True] * 4 + [tokens == "all"] * 4)
    expected = -0.5 * mean_cosine(states[pair[0] - 1], states[pair[1] - 1], keep)
    with attach(model, settings(*pair, layersync_tokens=tokens)) as sync:
        model(**inputs)
        loss = sync.loss()
        loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(model), gradients_by_autograd(expected, model))


def test_flux_with_a_batch_axis_on_its_ids() -> None:
    model, inputs = build("flux references")
    states = states_by_hand(model, inputs)
    expected = -0.5 * mean_cosine(states[1], states[4], generated(inputs))
    with attach(model, settings(2, 5)) as sync:
        model(**{**inputs, "img_ids": inputs["img_ids"].expand(2, -1, -1), "txt_ids": inputs["txt_ids"][None]})
        torch.testing.assert_close(sync.loss(), expected, rtol=1e-5, atol=1e-6)


def test_positional_arguments_are_understood() -> None:
    model, inputs = build("flux references")
    states = states_by_hand(model, inputs)
    with attach(model, settings(2, 5)) as sync:
        model(*inputs.values())
        expected = -0.5 * mean_cosine(states[1], states[4], generated(inputs))
        torch.testing.assert_close(sync.loss(), expected, rtol=1e-5, atol=1e-6)


def test_a_batch_of_references_alone_is_an_error_and_not_zero() -> None:
    model, inputs = build("flux references")
    inputs["img_ids"][:, 0] = 1
    with attach(model, settings(2, 5)) as sync:
        model(**inputs)
        with pytest.raises(CaptureError, match="no generated token"):
            sync.loss()


def test_references_are_told_from_the_rotations_of_flux_blocks_driven_by_hand() -> None:
    model, inputs = build("flux references")
    with attach(model, settings(2, 5)) as sync:
        states = states_by_hand(model, inputs)
        expected = -0.5 * mean_cosine(states[1], states[4], generated(inputs))
        torch.testing.assert_close(sync.loss(), expected)
