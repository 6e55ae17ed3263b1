"""`layersync run` over other people's trainers, unedited: a tiny random model, five steps, every gradient compared.

A trainer runs when LAYERSYNC_<NAME>_CHECKOUT names a clone of it and LAYERSYNC_<NAME>_PYTHON the interpreter of an
environment with its pins, in which this repository's packages are installed (`pip install -e . -e adapters/wan …`).
NAME is the CHECKOUT of its module in tests/trainers; docs/trainers tells which versions were run.
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
from tests.trainers import (
    ai_toolkit,
    diffsynth_studio,
    diffusion_pipe,
    musubi_flux2,
    musubi_flux_kontext,
    musubi_framepack,
    musubi_hunyuan_video,
    musubi_hunyuan_video_1_5,
    musubi_kandinsky5,
    musubi_qwen_image,
    musubi_wan,
    musubi_z_image,
    onetrainer,
    sd_scripts,
)

pytestmark = pytest.mark.slow

TESTS = Path(__file__).resolve().parent
TRAINERS = {
    trainer.TABLE: trainer
    for trainer in (
        musubi_wan,
        musubi_hunyuan_video,
        musubi_hunyuan_video_1_5,
        musubi_framepack,
        musubi_flux_kontext,
        musubi_flux2,
        musubi_qwen_image,
        musubi_z_image,
        musubi_kandinsky5,
        sd_scripts,
        diffsynth_studio,
        ai_toolkit,
        diffusion_pipe,
        onetrainer,
    )
}
STEPS, WEIGHT = 5, 0.5


@dataclass(frozen=True)
class Variant:
    """A trainer, more arguments of it, and what the reference must know (`trainer_gradients._Reference`).

    ``accumulation`` is what a user must give where the trainer's losses do not tell it; ``backward`` stands in for the
    trainer's own; ``first`` is the first step, from 0, whose gradient the term changes.
    """

    name: str
    more: str
    student: int = 2
    teacher: int = 4
    tokens: int | None = None
    losses: int = 1
    warmup: int = 0
    backward: str = ""
    accumulation: int | None = None
    first: int = 0

    @property
    def trainer(self) -> ModuleType:
        return TRAINERS[self.name]

    @property
    def flags(self) -> list[str]:
        flags = f"""
            --layersync_enabled true --layersync_student_block {self.student} --layersync_teacher_block {self.teacher}
            --layersync_lambda {WEIGHT} --layersync_warmup_steps {self.warmup} {getattr(self.trainer, "FLAGS", "")}
        """.split()
        if self.accumulation is not None:
            flags += ["--layersync_accumulation_steps", str(self.accumulation)]
        return flags

    @property
    def attached(self) -> str:
        """What the run says first."""
        paths = self.trainer.PATHS
        student, teacher = (
            f"block {number} of {len(paths)} ({paths[number - 1]})" for number in (self.student, self.teacher)
        )
        return f"layersync: {self.trainer.MODEL}: student {student}, teacher {teacher}, weight {WEIGHT}"

    def reference(self) -> dict[str, Any]:
        """Arguments of the term written out."""
        ours = {name: getattr(self, name) for name in ("student", "teacher", "tokens", "losses", "warmup")}
        ours |= {"backward": self.backward or self.trainer.BACKWARD, "weight": WEIGHT}
        return {"blocks": self.trainer.BLOCKS, "ahead": getattr(self.trainer, "AHEAD", 0), **ours}

    def __str__(self) -> str:
        return f"{self.name} {self.more or 'plain'}, {self.student} to {self.teacher}"


VARIANTS = [
    Variant(name, more, **settings) for name, trainer in TRAINERS.items() for more, settings in trainer.VARIANTS
]


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
        variables = [f"LAYERSYNC_{TRAINERS[name].CHECKOUT}_{what}" for what in ("CHECKOUT", "PYTHON")]
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

    def train(variant: Variant, how: str) -> Done:
        checkout, python = found(variant.name)
        folder = tmp_path_factory.mktemp(how)
        words = [str(python), *variant.trainer.command(made(variant.name), folder, variant.more)]
        environment = {"TRAINER_GRADIENTS": str(folder / "gradients.pt")}
        if how == "reference":
            environment["TRAINER_REFERENCE"] = json.dumps(variant.reference())
        if how == "layersync":
            words = [str(python.with_name("layersync")), "run", *variant.flags, "--", *words]
        return Done(folder, call(words, checkout, variant.trainer, **environment))

    return train


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_trainer_trains_on_the_term(train, variant):
    plain, reference, ours = (train(variant, how) for how in ("plain", "reference", "layersync"))

    assert variant.attached in ours.output
    assert f"layersync: {STEPS} steps with the term, 1 rank, similarity " in ours.output
    if not variant.warmup:
        check_term(read_curves(ours.folder), STEPS - getattr(variant.trainer, "UNLOGGED", 0))
    assert "layersync_loss" not in read_curves(plain.folder)

    assert len(ours.gradients) == len(reference.gradients) == len(plain.gradients) == STEPS
    distances = [distance(*step) for step in zip(ours.gradients, reference.gradients, strict=True)]
    # All three start from the same weights, so at the first step with the term, it alone makes the difference,
    # and roundings have not grown yet.
    first = 1 if variant.warmup else variant.first
    term = distance(plain.gradients[first], reference.gradients[first])
    shown = ", ".join(f"{value:.2e}" for value in (distances[first], max(distances), term))
    print(f"{variant}: gradients differ at the first step, at any, and without the term by {shown}")
    assert distances[first] < 1e-4
    assert max(distances) < getattr(variant.trainer, "LIMIT", 1e-4)
    assert term > 1e-2
