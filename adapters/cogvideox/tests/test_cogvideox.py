"""CogVideoX 1.0 and 1.5, text-to-video and image-to-video, as diffusers has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from layersync_adapter_cogvideox import adapter, tiny
from layersync_core.testing import AdapterConformance, look


class TestCogVideoX(AdapterConformance):
    family = "cogvideox"
    depth = 4


class TestCogVideoXImageToVideo(TestCogVideoX):
    tiny_model = tiny.tiny_image_to_video


class TestCogVideoX15(TestCogVideoX):
    tiny_model = tiny.tiny_15

    @staticmethod
    def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
        return inputs | {"encoder_hidden_states": torch.cat([inputs["encoder_hidden_states"]] * 2, dim=1)}


class TestCogVideoX15ImageToVideo(TestCogVideoX15):
    tiny_model = tiny.tiny_15_image_to_video


@pytest.mark.parametrize(("form", "frames"), [("CogVideoX", 4), ("CogVideoX 1.5", 2), ("CogVideoX 1.5 I2V", 2)])
def test_frames_come_before_channels_and_are_cut_into_patches(form: str, frames: int) -> None:
    model = tiny.variants[form]()
    tokens = look(adapter, model, tiny.example_inputs(model, 2)).tokens
    assert tokens.grid == (frames, 4, 3)
