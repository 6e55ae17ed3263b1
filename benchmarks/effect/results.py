"""The raw results of a run: one JSON file that grows training by training."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from accelerate import Accelerator
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from benchmarks.effect.arms import EVERY_ARM, Job, Scale, between, plan
from benchmarks.effect.depth import named, runs
from benchmarks.effect.tasks import EVERY_TASK
from layersync_core.errors import ConfigError
from layersync_core.files import read_json
from layersync_plugin_trainer.report import versions

FILE = "results.json"


Share = Annotated[float, Field(ge=0, le=1 + 1e-4)]  # CKA is rounded
Loss = Annotated[float, Field(gt=0, lt=1e6)]
"""Of samples and noise of about unit variance, where a useless model has 2 and a diverged one is not measured."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Depth(_Model):
    """What the model does without some of its blocks.

    Attributes:
        whole: Flow-matching loss on the held-out samples, each once.
        without: The same without a run of blocks, by its first and last block, as in ``5-8``.
        change: How far each block is from the identity, at half noise.
    """

    whole: Loss
    without: dict[str, Annotated[float, Field(gt=0)]]
    change: list[Annotated[float, Field(ge=0)]]


class Mark(_Model):
    """The measurements of a model at one step.

    Attributes:
        held_out: Flow-matching loss on samples that training never saw.
        probe: Accuracy of a linear probe on each block, by the share of noise.
        cka: Linear CKA of each block with each, (N, N).
        frechet: Fréchet distance of drawn samples.
        accuracy: Share of them that is recognised; None if the model is not conditioned on a class.
        depth: The model without some of its blocks, if the task asks for it.
    """

    held_out: Loss
    probe: dict[str, list[Share]]
    cka: list[list[Share]]
    frechet: Annotated[float, Field(gt=0)]
    accuracy: Share | None
    depth: Depth | None = None

    def is_of(self, blocks: int, times: tuple[float, ...], deep: bool, span: tuple[int, int] | None) -> bool:
        """Return whether these are the measurements of a model with so many blocks."""
        rows: list[list[Any]] = [*self.probe.values(), *self.cka, self.cka]
        counts = {len(row) for row in rows}
        if counts != {blocks} or self.probe.keys() != set(map(str, times)) or (self.depth is None) == deep:
            return False
        expected = {named(*run) for run in runs(blocks, span)}
        return self.depth is None or (self.depth.without.keys() == expected and len(self.depth.change) == blocks)


class Compared(_Model):
    """What ``layersync suggest`` measured of a pair that the paper's rules allow.

    Attributes:
        student: Student block, from 1.
        teacher: Teacher block.
        lead: The teacher's linear probe minus the student's.
        error: Its standard error.
        centred: Centred cosine of the two.
        rise: Share by which the loss rises without the blocks between; None where that was not measured.
    """

    student: int
    teacher: int
    lead: float | None
    error: float | None
    centred: float | None
    rise: float | None


class Call(_Model):
    """What ``layersync suggest`` says of a model that was trained without LayerSync.

    Attributes:
        compared: The pairs that it compared.
        answer: Whether LayerSync is likely to help: yes, no or unknown.
        reason: Why, with the figures.
        pair: The best pair; None if it recommends none.
        stop: Share of the training after which to stop, 1 for never; None if it recommends no pair.
    """

    compared: list[Compared]
    answer: Literal["yes", "no", "unknown"]
    reason: str
    pair: tuple[int, int] | None
    stop: float | None


class Real(_Model):
    """The classifier's results on held-out samples: the scale for drawn ones."""

    accuracy: Share
    frechet: Annotated[float, Field(ge=0)]


class Record(_Model):
    """Raw results of one training.

    Attributes:
        task: Name of the task.
        arm: Name of the arm.
        seed: Seed of weights, samples and noise.
        steps: Requested optimiser steps.
        pair: Student and teacher block, from 1.
        weight: The term's weight.
        curve: Points (optimiser step, held-out loss).
        marks: All other measurements, by optimiser step.
        diverged: The step at which loss or samples were no longer finite and the training ended.
        call: The prediction, from the first seed's vanilla model of a task that asks for it.
        real: The scale for drawn samples.
        seconds: Time of training and measuring.
        machine: Versions and the kind of device.
    """

    task: str
    arm: str
    seed: int
    steps: int
    pair: tuple[int, int]
    weight: float
    curve: list[tuple[int, float]]
    marks: dict[int, Mark]
    diverged: int | None
    call: Call | None = None
    real: Real
    seconds: Annotated[float, Field(ge=0)]
    machine: dict[str, str]

    @model_validator(mode="after")
    def _as_planned(self) -> Record:
        arm, task = EVERY_ARM.get(self.arm), EVERY_TASK.get(self.task)
        if task is None or arm is None:
            raise ValueError(f"no task {self.task!r} with an arm {self.arm!r}")
        if (self.pair, self.weight) != (arm.pair_of(self.seed, task.blocks), arm.weight):
            raise ValueError(f"pair {self.pair} and weight {self.weight} are not this version's {self.arm!r} arm")
        return self

    @property
    def job(self) -> Job:
        """The job; its key is the record's name in the file."""
        return Job(self.task, self.arm, self.seed, self.steps)

    @property
    def span(self) -> tuple[int, int] | None:
        """First and last of the blocks between student and teacher; None if the model never has them."""
        return None if EVERY_ARM[self.arm].absent else between(self.pair)

    def is_whole(self, scale: Scale, planned: list[Job]) -> bool:
        """Return whether this training was planned, and exactly this was to be measured, up to its end."""
        points, task = self.job.points(scale, self.diverged), EVERY_TASK[self.task]
        span, blocks = self.span, task.blocks
        if span is None:
            blocks -= self.pair[1] - self.pair[0]
        called = self.job.is_called and self.diverged is None
        return (
            self.job in planned
            and (self.call is not None) == called
            and self.diverged in (None, *self.job.points(scale))
            and [step for step, _ in self.curve] == points
            and self.marks.keys() == {step for step in points if step in (scale.short, self.steps)}
            and all(mark.is_of(blocks, task.times, task.deep, span) for mark in self.marks.values())
        )


class Results:
    """The trainings so far.

    Attributes:
        scale: How much is trained and measured.
        jobs: Every training of the study.
        records: Each finished training, by its key.
    """

    def __init__(self, folder: Path, scale: Scale, planned: Callable[[Scale], list[Job]] = plan) -> None:
        """Read the results that the folder already holds.

        Args:
            folder: Where they are.
            scale: How much is trained and measured.
            planned: Returns every training of the study.

        Raises:
            ConfigError: It holds the results of another kind of run, or a training that this version would not make.
        """
        self.scale = scale
        self.jobs = planned(scale)
        self.records: dict[str, Record] = {}
        self._file = folder / FILE
        if not self._file.exists():
            return
        found = read_json(self._file)
        records = found.get("records")
        if found.get("scale") != asdict(scale) or not isinstance(records, dict):
            raise ConfigError(
                f"{self._file} is from a run with other settings (or from another version); give another --output_dir"
            )
        for key, values in records.items():
            try:
                record = Record.model_validate(values)
                right = key == record.job.key and record.is_whole(scale, self.jobs)
                complaint = "" if right else "not what this version trains"
            except ValidationError as error:
                wrong = error.errors()[0]
                complaint = f"{'.'.join(map(str, wrong['loc']))} {wrong['msg']}".strip()
            if complaint:
                raise ConfigError(
                    f"{self._file}, {key!r}: {complaint}; remove that training from the file to repeat it, or give "
                    "another --output_dir"
                )
            self.records[key] = record

    def missing(self, jobs: list[Job]) -> list[Job]:
        """Return the jobs without a result."""
        return [job for job in jobs if job.key not in self.records]

    def from_elsewhere(self) -> list[str]:
        """Return the keys of trainings with other versions, or on another kind of device, than a training here."""
        here = machine(Accelerator().device)
        return [key for key, record in self.records.items() if record.machine != here]

    def add(self, record: Record) -> None:
        """Add a training's results and write the file, completely or not at all."""
        self.records[record.job.key] = record
        # One line per training, in the order of the arms, whatever order they finished in.
        order = sorted(self.records, key=lambda key: _place(self.records[key]))
        lines = ",\n".join(f"{json.dumps(key)}: {self.records[key].model_dump_json()}" for key in order)
        draft = self._file.with_suffix(".part")
        draft.write_text(
            f'{{"scale": {json.dumps(asdict(self.scale))}, "records": {{\n{lines}\n}}}}\n', encoding="utf-8"
        )
        os.replace(draft, self._file)


def machine(device: torch.device) -> dict[str, str]:
    """Return where a training ran: versions and the kind of device."""
    ours = {name: version(name) for name in ("numpy", "scikit-learn", "scikit-image")}
    return {"python": platform.python_version(), **versions(), **ours, "device": device.type}


def _place(record: Record) -> tuple[int, ...]:
    return list(EVERY_TASK).index(record.task), list(EVERY_ARM).index(record.arm), record.seed
