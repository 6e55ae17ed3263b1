"""The conformance of PixArt Sigma and Alpha."""

import torch

from layersync_adapter_pixart import tiny
from layersync_core.testing import AdapterConformance


class TestPixArtSigma(AdapterConformance):
    family = "pixart"
    depth = 4

    @staticmethod
    def longer_text(inputs):
        return inputs | {"encoder_hidden_states": torch.randn(2, 9, 10)}


class TestPixArtAlpha(TestPixArtSigma):
    tiny_model = tiny.tiny_alpha


class TestPixArtWide(TestPixArtSigma):
    @staticmethod
    def example_inputs(model, batch_size):
        return tiny.example_inputs(model, batch_size, size=(4, 12))
