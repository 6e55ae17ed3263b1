"""Cosmos Predict 1, 2 and 2.5, as diffusers has them."""

from __future__ import annotations

from typing import Any

import torch

from layersync_adapter_cosmos import tiny
from layersync_core.testing import AdapterConformance


def _longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    text = inputs["encoder_hidden_states"]
    if isinstance(text, tuple):
        return inputs | {"encoder_hidden_states": (torch.cat([text[0]] * 2, dim=1), text[1])}
    return inputs | {"encoder_hidden_states": torch.cat([text, text], dim=1)}


class TestCosmosPredict1(AdapterConformance):
    family = "cosmos"
    longer_text = _longer_text
    depth = 4


class TestCosmosPredict2(TestCosmosPredict1):
    tiny_model = tiny.tiny_2


class TestCosmosPredict25(TestCosmosPredict1):
    tiny_model = tiny.tiny_25
