"""Sana and Sana Video, as diffusers has them."""

from __future__ import annotations

from typing import Any

import torch

from layersync_adapter_sana import tiny
from layersync_core.testing import AdapterConformance


def _longer_text(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.cat([value, value], dim=1) if "encoder" in name else value for name, value in inputs.items()}


class TestSana(AdapterConformance):
    family = "sana"
    longer_text = _longer_text
    depth = 4


class TestSanaVideo(TestSana):
    tiny_model = tiny.tiny_video
