"""Core and adapters beside a trainer's old pins: Python 3.10, diffusers 0.32.1, transformers 4.54, accelerate 1.6."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
PINS = ("diffusers==0.32.1", "transformers==4.54.*", "accelerate==1.6.*")
# What these pins bring in other versions than this environment has; without them they cannot be imported.
COMPANIONS = ("huggingface-hub", "tokenizers")


def metadata_only_torch(folder: Path) -> str:
    """Write a wheel of torch that is nothing but metadata, and return the requirement it satisfies.

    The resolution needs torch's version and requirements, not its gigabytes.
    """
    version, info = "2.4.1+metadata", "torch-2.4.1+metadata.dist-info"
    requires = ("filelock", "typing-extensions>=4.8.0", "sympy", "networkx", "jinja2", "fsspec")
    metadata = [f"Metadata-Version: 2.1\nName: torch\nVersion: {version}", *(f"Requires-Dist: {it}" for it in requires)]
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return f"torch=={version}"


@pytest.fixture(scope="module")
def resolution(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[str | Path]], dict[str, str]]:
    """Ask pip which versions it would install for Python 3.10; nothing is installed.

    (pip judges environment markers by the running interpreter, but picks releases and files for the asked one.)
    """
    folder = tmp_path_factory.mktemp("resolution")
    torch = metadata_only_torch(folder)

    def resolve(requirements: Sequence[str | Path]) -> dict[str, str]:
        report = folder / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
        command += ["--report", str(report), "--target", str(folder / "nowhere"), "--find-links", str(folder)]
        command += ["--python-version", "3.10", "--only-binary", ":all:", torch, *map(str, requirements)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        installed = json.loads(report.read_text(encoding="utf-8"))["install"]
        return {_normal(item["metadata"]["name"]): item["metadata"]["version"] for item in installed}

    return resolve


@pytest.fixture(scope="module")
def pinned(resolution: Callable[..., dict[str, str]]) -> dict[str, str]:
    """The versions in a trainer's environment without LayerSync."""
    return resolution(PINS)


@pytest.fixture(scope="module")
def wheels(build: Callable[[str], Any]) -> list[Path]:
    """Core and every adapter; plugins may need newer packages."""
    adapters = [path.parent.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("adapters/*/pyproject.toml"))]
    return [build(folder).wheel for folder in (".", *adapters)]


def test_installing_beside_the_pins_moves_nothing(
    resolution: Callable[..., dict[str, str]], pinned: dict[str, str], wheels: list[Path]
) -> None:
    assert pinned["diffusers"] == "0.32.1"
    assert pinned["transformers"].startswith("4.54.")
    assert pinned["accelerate"].startswith("1.6.")

    together = resolution([*PINS, *wheels])

    assert {name: together[name] for name in pinned} == pinned
    assert {path.name.split("-")[0].replace("_", "-") for path in wheels} <= together.keys()


TRAIN = '''
import math
import sys

import diffusers
import torch
from torch import nn

from layersync_core import attach
from layersync_core.families.registry import load_tiny

assert diffusers.__version__ == "0.32.1", diffusers.__version__


class WanAttentionBlock(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.ffn = nn.Linear(dim, dim)

    def forward(self, x, e):
        return x + self.ffn(self.norm(x)) * e


class WanModel(nn.Module):
    """Shaped as in the original repository: trainers that pin a diffusers without Wan carry the class themselves."""

    def __init__(self, dim=16, depth=4):
        super().__init__()
        self.dim, self.patch_size = dim, (1, 2, 2)
        self.patch_embedding = nn.Conv3d(4, dim, self.patch_size, self.patch_size)
        self.blocks = nn.ModuleList(WanAttentionBlock(dim) for _ in range(depth))
        self.head = nn.Linear(dim, 16)

    def forward(self, x, t):
        x = torch.cat([self.patch_embedding(video[None]).flatten(2).transpose(1, 2) for video in x])
        for block in self.blocks:
            x = block(x, t[:, None, None])
        return self.head(x)


def wan():
    return WanModel(), {"x": [torch.randn(4, 3, 8, 8) for _ in range(2)], "t": torch.rand(2)}


def flux():
    tiny = load_tiny("flux")
    model = tiny.tiny_model()
    return model, tiny.example_inputs(model, 2) | {"return_dict": False}


torch.manual_seed(0)
model, inputs = {"flux": flux, "wan": wan}[sys.argv[1]]()
settings = {"layersync_enabled": True, "layersync_student_block": 3, "layersync_teacher_block": 4}
with attach(model, settings) as sync:
    assert sync.family == sys.argv[1], sync.family
    optimizer = torch.optim.AdamW(model.parameters())
    output = model(**inputs)
    output = output[0] if isinstance(output, tuple) else output
    auxiliary = sync.loss()
    gradients = torch.autograd.grad(auxiliary, list(model.get_submodule(sync.student.path).parameters()),
                                    retain_graph=True, allow_unused=True)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    (output.square().mean() + auxiliary).backward()
    optimizer.step()
    similarity = sync.metrics()["layersync_similarity"].item()
    assert math.isfinite(similarity) and -1 <= similarity <= 1, similarity
print(sync.student, sync.teacher)
'''


@pytest.fixture(scope="module")
def trainer_environment(install: Callable[..., Path], pinned: dict[str, str], wheels: list[Path]) -> Path:
    """The pinned versions and our wheels, over this environment's torch."""
    names = [pin.split("==")[0] for pin in PINS]
    # Two short programs run in it, and import a few of the thousands of modules.
    return install([*(f"{name}=={pinned[name]}" for name in (*names, *COMPANIONS)), *wheels], "--no-compile")


@pytest.mark.parametrize("family", ["flux", "wan"])
def test_attach_trains_beside_the_pins(
    trainer_environment: Path, isolated_python: Callable[..., CompletedProcess[str]], family: str
) -> None:
    done = isolated_python("-c", TRAIN, family, path=[trainer_environment])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("block 3 of ")


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
