"""What the blocks of the pages take for granted, and what must be so after they ran."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from layersync_core import Term, attach
from layersync_core.cli import main
from layersync_core.families.registry import load_tiny
from tests.site.blocks import Block

PAIR = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}


def execute(block: Block, names: dict[str, Any], **smaller: str) -> dict[str, Any]:
    """Run a block of Python and return the names that it leaves; a longer model's blocks become a tiny one's."""
    code = block.code
    for before, after in {'student_block": 8': 'student_block": 2', 'teacher_block": 16': 'teacher_block": 4'}.items():
        code = code.replace(before, after)
    for before, after in smaller.items():
        assert before in code
        code = code.replace(before, after)
    exec(compile(code, block.place, "exec"), names)
    return names


def loop(block: Block, _: Path) -> None:
    tiny = load_tiny("dit")
    model = tiny.tiny_model()
    names = {
        "transformer": model,
        "loader": [tiny.example_inputs(model, 2) for _ in range(3)],
        "target": 0.0,
        "mse": lambda output, target: (output - target).square().mean(),
    }
    sync = execute(block, names)["sync"]
    assert set(sync.metrics()) == {"layersync_loss", "layersync_similarity"}
    assert str(sync.student) == "block 2 of 6 (transformer_blocks.1)"
    sync.remove()
    assert any(bool(parameter.grad.any()) for parameter in model.parameters() if parameter.grad is not None)
    with attach(model, {"layersync_enabled": False}) as off:
        loss = torch.ones(())
        assert off.apply(loss) is loss


def description(block: Block, _: Path) -> None:
    adapter = execute(block, {})["adapter"]
    assert (adapter.family, adapter.model_classes) == ("mine", ("MyTransformer",))


class MyTransformer(torch.nn.Module):
    """Blocks that return the image's tokens alone."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh()) for _ in range(8))

        self.head = torch.nn.Linear(6, 6)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            latents = block(latents)
        return self.head(latents)


def own_adapter(block: Block, _: Path) -> None:
    model = MyTransformer()
    with execute(block, {"model": model})["sync"] as sync:
        assert str(sync.student) == "block 4 of 8 (blocks.3)"
        sync.apply(model(torch.randn(2, 5, 6)).square().mean()).backward()
        assert set(sync.metrics()) == {"layersync_loss", "layersync_similarity"}


def generated(block: Block, _: Path) -> None:
    call = SimpleNamespace(arguments={"latents": torch.zeros(2, 3, 4)}, tokens=5)
    assert execute(block, {})["generated"](call).tolist() == [True, True, True, False, False]


def references(block: Block, _: Path) -> None:
    tiny = load_tiny("flux")
    names = execute(block, {"TestMine": object, "partial": partial, "tiny": tiny})
    inputs = names["TestMineWithReferences"].example_inputs(tiny.tiny_model(), 2)
    plain = tiny.example_inputs(tiny.tiny_model(), 2)
    assert inputs["hidden_states"].shape[1] > plain["hidden_states"].shape[1]


def adapter_file(block: Block, _: Path) -> None:
    model = MyTransformer()
    model.config = {}
    names = {"model": model, "config": PAIR, "attach": attach}
    with attach(model, PAIR, family="auto") as names["sync"]:
        names["sync"].apply(model(torch.randn(2, 5, 6)).square().mean()).backward()
        save, load = block.code.splitlines()
        exec(save, names)
    with eval(load, names) as sync:
        assert str(sync.student) == "block 2 of 8 (blocks.1)"


def objective(block: Block, _: Path) -> None:
    made = execute(block, {"torch": torch, "F": F, "Term": Term})["Agreeing"]()
    predict: Any = lambda noisy, time, labels: noisy * time[:, None]  # noqa: E731
    predict.paused = contextlib.nullcontext
    clean, noise = torch.randn(4, 3), torch.randn(4, 3)
    batch = SimpleNamespace(clean=clean, noise=noise, noisy=(clean + noise) / 2, time=torch.rand(4), labels=None)
    term = made.compute(predict, batch, 0)
    assert term.loss.isfinite()
    assert set(term.metrics) == {"agreeing_gap"}


def check(block: Block, folder: Path) -> None:
    (folder / "config").mkdir()
    (folder / "config" / "config.json").write_text(json.dumps({"--max_train_steps": "500", **PAIR}))
    commands(block)


def train(block: Block, folder: Path) -> None:
    """Each line after the other, with the model that the first one has made, and few steps."""
    few = ["--max_train_steps", "1", "--num_sampling_steps", "1", "--train_batch_size", "2"]
    for number, words in enumerate(block.commands()):
        own = ["--output_dir", f"run{number}"]
        if words[-1] == "latest":
            own, few = ["--output_dir", "run2"], ["--max_train_steps", "2", "--num_sampling_steps", "1"]
        assert main([*words[1:], *few, *own]) == 0, words
        if number == 0:
            (folder / "run0" / "layersync" / "model").rename(folder / "my-dit")


def commands(block: Block) -> None:
    for words in block.commands():
        assert words[0] == "layersync"
        assert main(words[1:]) == 0, words


SURROUNDINGS: dict[str, Callable[[Block, Path], None]] = {
    "loop": loop,
    "description": description,
    "own adapter": own_adapter,
    "generated": generated,
    "references": references,
    "adapter file": adapter_file,
    "objective": objective,
    "check": check,
    "train": train,
}


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield
