"""SkyReels V2, as diffusers has it: text-to-video, image-to-video and diffusion forcing."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from layersync_adapter_skyreels_v2 import adapter, tiny
from layersync_core import ConfigError, attach, resolve
from layersync_core.testing import AdapterConformance, look, scatter_weights, seed_everything


class TestSkyReelsV2(AdapterConformance):
    family = "skyreels_v2"
    depth = 4

    @staticmethod
    def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs | {"encoder_hidden_states": torch.cat([inputs["encoder_hidden_states"]] * 2, dim=1)}


class TestSkyReelsV2ImageToVideo(TestSkyReelsV2):
    tiny_model = tiny.tiny_image_to_video


class TestSkyReelsV2DiffusionForcing(TestSkyReelsV2):
    example_inputs = partial(tiny.example_inputs, forcing=True)


class TestSkyReelsV2Causal(TestSkyReelsV2DiffusionForcing):
    tiny_model = tiny.tiny_causal


SETTINGS = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 3}


@pytest.mark.parametrize("forcing", [False, True])
def test_every_token_of_every_frame_counts(forcing: bool) -> None:
    seed_everything()
    model: Any = tiny.tiny_model()
    scatter_weights(model)
    inputs = tiny.example_inputs(model, 2, forcing=forcing)
    if forcing:
        inputs["timestep"][:, 0] = 0  # a given frame
    states: list[Tensor] = []
    with attach(model, SETTINGS | {"layersync_lambda": 1.0}) as sync:
        handles = [model.blocks[k].register_forward_hook(lambda m, a, output: states.append(output)) for k in (1, 2)]
        model(**inputs)
        expected = torch.cosine_similarity(states[0], states[1].detach(), dim=-1)
        assert expected.shape == (2, 4 * 4 * 3)
        torch.testing.assert_close(sync.loss(), -expected.mean())
        for handle in handles:
            handle.remove()
    assert look(adapter, model, inputs).tokens.grid == (4, 4, 3)


def test_it_is_never_taken_for_wan() -> None:
    model = tiny.tiny_model()
    assert resolve(model) is adapter
    assert resolve({"_class_name": "SkyReelsV2Transformer3DModel"}) is adapter
    wan = pytest.importorskip("layersync_adapter_wan").adapter
    assert not wan.supports_hidden_states(model)
    with pytest.raises(ConfigError, match="not SkyReelsV2Transformer3DModel"):
        attach(model, SETTINGS, adapter=wan)
