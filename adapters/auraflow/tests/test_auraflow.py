from typing import Any

import torch

from layersync_adapter_auraflow import adapter, tiny
from layersync_core.testing import AdapterConformance


def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"encoder_hidden_states": torch.randn(2, 9, 12)}


class TestAuraFlow(AdapterConformance):
    adapter = adapter
    tiny_model = staticmethod(tiny.tiny_model)
    example_inputs = staticmethod(tiny.example_inputs)
    depth = 4
    longer_text = staticmethod(longer_text)
