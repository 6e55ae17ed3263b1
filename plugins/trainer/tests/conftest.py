from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from layersync_core.cli import main


class Result(NamedTuple):
    code: int
    out: str
    err: str
    folder: Path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run ``layersync train`` in this process, short and small by default."""

    def run(*flags: str, folder: str = "run", **settings: Any) -> Result:
        place = Path(settings.pop("output_dir", tmp_path / folder))
        small = {"max_train_steps": 2, "train_batch_size": 4, "num_sampling_steps": 1, "report_to": "none"}
        arguments = ["train", "--output_dir", str(place)]
        if "resume_from_checkpoint" not in settings:
            settings = small | settings
        for key, value in settings.items():
            if value is not None:
                arguments += [f"--{key}", str(value)]
        capsys.readouterr()
        try:
            code = main([*arguments, *flags])
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err, place)

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run with three checkpoints, to be copied."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    flags = "--max_train_steps 3 --train_batch_size 4 --num_sampling_steps 1 --report_to none --checkpointing_steps 1"
    assert main(["train", "--output_dir", str(folder), *flags.split()]) == 0
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the short run, which the test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
