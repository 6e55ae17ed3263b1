"""`layersync run` over other people's trainers, unedited: a tiny random model, five steps, every gradient compared.

A trainer runs when LAYERSYNC_<NAME>_CHECKOUT names a clone of it and LAYERSYNC_<NAME>_PYTHON the interpreter of an
environment with its pins, in which this repository's packages are installed (`pip install -e . -e adapters/wan …`).
docs/trainers tells which versions were run.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.curves import check_term, read_curves
from tests.trainers import ai_toolkit, diffsynth_studio, diffusion_pipe, musubi, onetrainer, sd_scripts

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parent
TRAINERS = {
    "MUSUBI": musubi,
    "SD_SCRIPTS": sd_scripts,
    "DIFFSYNTH": diffsynth_studio,
    "AI_TOOLKIT": ai_toolkit,
    "DIFFUSION_PIPE": diffusion_pipe,
    "ONETRAINER": onetrainer,
}
STEPS = 5
STUDENT, TEACHER, WEIGHT = 2, 4, 0.5
FLAGS = (
    f"--layersync_enabled true --layersync_student_block {STUDENT} --layersync_teacher_block {TEACHER} "
    f"--layersync_lambda {WEIGHT}"
)


@dataclass(frozen=True)
class Done:
    """What a finished run left behind."""

    folder: Path
    output: str

    @property
    def gradients(self) -> list[Tensor]:
        """All gradients of each optimiser step, as one vector."""
        steps = torch.load(self.folder / "gradients.pt")
        return [torch.cat([gradient.flatten() for gradient in step]) for step in steps]


def distance(some: Tensor, reference: Tensor) -> float:
    return float((some - reference).norm() / reference.norm())


def call(command: list[str], checkout: Path, trainer: ModuleType, **environment: str) -> str:
    """Run a command in a trainer's folder, with our start-up file; return its output and errors."""
    stubs = [TESTS / "stubs"] if trainer.STUBS else []
    paths = [TESTS / "trainers" / "startup", *stubs, checkout / trainer.SOURCES]
    done = subprocess.run(
        command,
        env={
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "SEED": "1",
            "TRAINER": trainer.TABLE,
            "TRAINER_SAVED_AT": trainer.SAVED_AT,
            **environment,
        },
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Done]:
    """Train with a trainer: plain, with the term of a reference, or below `layersync run`."""

    @cache
    def found(name: str) -> tuple[Path, Path]:
        variables = f"LAYERSYNC_{name}_CHECKOUT", f"LAYERSYNC_{name}_PYTHON"
        if not all(os.environ.get(variable) for variable in variables):
            pytest.skip(f"{' and '.join(variables)} name no clone and no interpreter")
        checkout, python = (Path(os.environ[variable]) for variable in variables)
        return checkout, python

    @cache
    def made(name: str) -> Path:
        checkout, python = found(name)
        trainer, folder = TRAINERS[name], tmp_path_factory.mktemp("made")
        call([str(python), str(trainer.__file__), str(folder)], checkout, trainer)
        return folder

    def train(name: str, more: str, how: str) -> Done:
        checkout, python = found(name)
        trainer, folder = TRAINERS[name], tmp_path_factory.mktemp(how)
        words = [str(python), *trainer.command(made(name), folder, more)]
        environment = {"TRAINER_GRADIENTS": str(folder / "gradients.pt")}
        if how == "reference":
            reference: dict[str, Any] = {"block": trainer.BLOCK, "element": trainer.ELEMENT}
            reference |= {"student": STUDENT, "teacher": TEACHER, "weight": WEIGHT, "backward": trainer.BACKWARD}
            reference |= {key: value for key, value in trainer.VARIANTS[more].items() if key != "accumulation"}
            environment["TRAINER_REFERENCE"] = json.dumps(reference)
        if how == "layersync":
            warmup = f"--layersync_warmup_steps {trainer.VARIANTS[more].get('warmup', 0)}"
            flags = [*FLAGS.split(), *warmup.split()]
            if "accumulation" in trainer.VARIANTS[more]:
                flags += ["--layersync_accumulation_steps", str(trainer.VARIANTS[more]["accumulation"])]
            words = [str(python.with_name("layersync")), "run", *flags, "--", *words]
        return Done(folder, call(words, checkout, trainer, **environment))

    return train


@pytest.mark.parametrize(
    ("name", "more"), [(name, more) for name, trainer in TRAINERS.items() for more in trainer.VARIANTS]
)
def test_a_trainer_trains_on_the_term(train, name, more):
    plain, reference, ours = (train(name, more, how) for how in ("plain", "reference", "layersync"))

    assert f"layersync: {TRAINERS[name].ATTACHED}" in ours.output
    assert f"layersync: {STEPS} steps with the term, 1 rank, similarity " in ours.output
    warmup = TRAINERS[name].VARIANTS[more].get("warmup", 0)
    if not warmup:
        check_term(read_curves(ours.folder), STEPS - getattr(TRAINERS[name], "UNLOGGED", 0))
    assert "layersync_loss" not in read_curves(plain.folder)

    assert len(ours.gradients) == len(reference.gradients) == len(plain.gradients) == STEPS
    distances = [distance(*step) for step in zip(ours.gradients, reference.gradients, strict=True)]
    # All three start from the same weights, so at the first step that has a term it alone makes the difference.
    first = 1 if warmup else 0
    term = distance(plain.gradients[first], reference.gradients[first])
    print(f"{name} {more or 'plain'}: gradients differ by {max(distances):.2e}, {term:.2e} without the term")
    assert max(distances) < 1e-4
    assert term > 1e-2
