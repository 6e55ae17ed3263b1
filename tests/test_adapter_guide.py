"""docs/adapters.md: following it leads someone outside of this repository from nothing to passing tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parents[1] / "docs" / "adapters.md").read_text(encoding="utf-8")
FILES = re.findall(r"```(?:toml|python)\n# (\S+)\n(.*?)```", GUIDE, re.DOTALL)

# Somebody's model, of which the guide says that its blocks return text and image as one sequence.
MODEL = """
import torch
from torch import nn


class Patchify(nn.Conv2d):
    def forward(self, latents):
        return super().forward(latents).flatten(2).transpose(1, 2)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner, self.mix, self.gate = (nn.Linear(width, width) for _ in range(3))

    def forward(self, joint, temb):
        joint = joint + self.gate(temb)[:, None] + 0.1 * self.mix(joint).mean(dim=1, keepdim=True)
        return joint + torch.tanh(self.inner(joint))


class MyTransformer(nn.Module):
    def __init__(self, width=768, depth=28):
        super().__init__()
        self.patchify = Patchify(4, width, 2, stride=2)
        self.embed_text, self.embed_time = nn.Linear(10, width), nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.out = nn.Linear(width, 16)

    def forward(self, latents, prompt_embeds, timestep):
        image, text = self.patchify(latents), self.embed_text(prompt_embeds)
        joint, temb = torch.cat([text, image], dim=1), self.embed_time(timestep[:, None])
        for block in self.blocks:
            joint = block(joint, temb)
        tokens = self.out(joint[:, text.shape[1] :])
        return nn.functional.fold(tokens.transpose(1, 2), latents.shape[2:], 2, stride=2)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The folder of the guide as pip would have installed it, beside the package of the model."""
    for name, text in reversed(FILES):  # a file that the guide has twice is as it first has it
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "my_models.py").write_text(MODEL)
    info = tmp_path / "layersync_adapter_mine-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: layersync-adapter-mine\nVersion: 0.1\n")
    (points,) = re.findall(r'^\[project\.entry-points\."(.*)"\]\n(\w+) = "(.*)"', dict(FILES)["pyproject.toml"], re.M)
    (info / "entry_points.txt").write_text(f"[{points[0]}]\n{points[1]} = {points[2]}\n")
    return tmp_path


def run(project: Path, *arguments: str) -> str:
    """Run a module of Python in the project's folder and return what it printed."""
    path = os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_the_guide_leads_to_a_green_adapter(project: Path) -> None:
    assert {name for name, _ in FILES} == set(re.findall(r"^  (\S+\.\w+)$", GUIDE, re.MULTILINE))
    row = next(
        line for line in run(project, "layersync_core", "list-supported", "--check").splitlines() if "mine" in line
    )
    assert re.match(r"mine .* installed: works", row)
    first = run(project, "pytest", "-p", "no:cacheprovider", "tests")
    said = re.search(r"^block 1 of 4 .* in the adapter$", GUIDE, re.MULTILINE)
    assert said is not None
    assert f"AssertionError: {said[0]}\n" in first
    assert "2 failed" in first
    adapter = project / "layersync_adapter_mine" / "__init__.py"
    before, after = (text for name, text in FILES if name == "layersync_adapter_mine/__init__.py")
    assert adapter.read_text() == before
    adapter.write_text(after)
    # The checks of checkpointing are skipped, and that of LoRA where peft is not there.
    assert re.search(r"= 1[01] passed, [34] skipped in ", run(project, "pytest", "-p", "no:cacheprovider", "tests"))
