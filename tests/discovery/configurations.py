"""Every configuration of the conformance kit, with the loss that its family is trained with."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from layersync_core.capture.graph import tensors_in
from layersync_core.testing import AdapterConformance, scatter_weights, seed_everything

ADAPTERS = Path(__file__).resolve().parents[2] / "adapters"

# What a trainer cuts off before it compares the prediction with its target: references before or behind, and padding.
GENERATED: dict[str, Any] = {
    "TestKontext": slice(16),
    "TestOriginalKontext": slice(8),
    "TestKontextOfFluxDiT": slice(8),
    "TestFiboWithReferences": slice(16),
    "TestFlux2WithReferences": slice(16),
    "TestJoyImageEditWithReferences": slice(-1, None),  # of images, in the order of the argument
    "TestKandinsky6WithReference": slice(2),  # of frames
    "TestFlux2DiT": slice(16),
    "TestFlux2OfOtherTrainersWithReferences": slice(6),
    "TestIdeogram4": slice(5, None),
    "TestIdeogram4DiT": slice(5, None),
    "TestIdeogram4Transformer": slice(12),
    "TestKrea2WithReferences": slice(16),
    "TestLongCatImageEdit": slice(16),
    "TestLTXVideoWithReference": slice(24, None),
    "TestLTX2WithReference": slice(24),
    "TestDiffSynthLTX2WithReference": slice(12),
    "TestQwenImageEdit": slice(16),
    "TestQwenImageEdit2511": slice(16),
    "TestQwenImageLayered": slice(32),
    "TestQwenImage21": slice(-16, None),
    "TestQwenImage21WithReferences": slice(-16, None),
    "TestQwenImageOfMusubiWithReferences": slice(8),
    "TestQwenImageDiTWithReferences": slice(8),
    "TestMiniMaxH3WithConditions": slice(6, None),
    "TestMiniMaxH3OfAiToolkit": slice(6, None),
    "TestMiniMaxH3DiT": slice(6, None),
}
LENGTHS = {"TestOriginalNotSquare": (12, 6), "TestJoyImageEditPlus": (8, 4)}


@dataclass(frozen=True)
class Configuration:
    """One class of the kit."""

    family: str
    kit: type[AdapterConformance]

    @property
    def name(self) -> str:
        return self.kit.__name__.removeprefix("Test")

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        seed_everything()
        model = self.kit.tiny_model()
        scatter_weights(model)
        seed_everything(1)
        return model.eval(), self.kit.example_inputs(model, self.kit.batch_size)

    def loss(self, output: Any) -> Tensor:
        """Return the loss of a training: against a random target, where there is one."""
        parts = [self._trained(tensor) for tensor in _prediction(output)]
        return torch.stack([(part - torch.randn_like(part)).pow(2).sum() for part in parts]).sum()

    def _trained(self, prediction: Tensor) -> Tensor:
        name = self.kit.__name__
        if name in LENGTHS:
            return torch.cat([sample[:length] for sample, length in zip(prediction, LENGTHS[name], strict=True)])
        if name not in GENERATED:
            return prediction
        # The tokens of one sample come without a batch.
        return prediction[:, GENERATED[name]] if prediction.ndim > 2 else prediction[GENERATED[name]]


def _prediction(output: Any) -> list[Tensor]:
    """Return the prediction: a list has one for each sample, a tuple has other values after it."""
    while not isinstance(output, (Tensor, list)):
        if isinstance(output, tuple):
            output = output[0]
        elif isinstance(output, dict):
            output = next(iter(output.values()))
        else:
            output = next(iter(vars(output).values()))
    return tensors_in(output)


@cache
def tests_of(folder: str) -> ModuleType:
    path = ADAPTERS / folder / "tests" / f"test_{folder}.py"
    spec = importlib.util.spec_from_file_location(f"discovery_of_{folder}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def folders() -> list[str]:
    """Return the names of the adapters' folders; one of them has several families."""
    return sorted(path.parts[-3] for path in ADAPTERS.glob("*/tests/test_*.py"))


def configurations(folder: str) -> Iterator[Configuration]:
    for kit in vars(tests_of(folder)).values():
        if inspect.isclass(kit) and issubclass(kit, AdapterConformance) and kit is not AdapterConformance:
            yield Configuration(kit.family or folder, kit)


def names() -> list[tuple[str, str]]:
    """Return folder and class of every configuration from the sources, without importing them."""
    found = []
    for folder in folders():
        source = (ADAPTERS / folder / "tests" / f"test_{folder}.py").read_text()
        found += [(folder, line.split("(")[0].removeprefix("class ")) for line in source.splitlines() if _is_kit(line)]
    return found


def _is_kit(line: str) -> bool:
    return line.startswith("class Test") and line.rstrip().endswith(":") and "(" in line


def configuration(folder: str, name: str) -> Configuration:
    kit = getattr(tests_of(folder), name)
    return Configuration(kit.family or folder, kit)
