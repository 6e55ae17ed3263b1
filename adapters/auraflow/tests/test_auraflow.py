from typing import Any

import torch

from layersync_core.testing import AdapterConformance


def longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    return inputs | {"encoder_hidden_states": torch.randn(2, 9, 12)}


class TestAuraFlow(AdapterConformance):
    family = "auraflow"
    depth = 4
    longer_text = longer_text
