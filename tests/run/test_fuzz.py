"""Small training programs at random: the gradients of every step are those of the program with the term written out.

``LAYERSYNC_FUZZ=5000 pytest tests/run/test_fuzz.py`` tries as many as that, other ones each time.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import accelerate
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersync_core.errors import CaptureError
from layersync_core.families.registry import load_tiny
from tests.models import Inputs, assert_same_gradients, build, generated, mean_cosine, states_by_hand
from tests.run.inside import WEIGHT, main_loss, switched_on
from tests.run.programs import Program, first_step, is_due, programs

BATCH = 2
SCALE = 16.0
NEAR = 1e-6


# How they are run.


@cache
def prototype(family: str) -> tuple[nn.Module, list[Inputs]]:
    """Return a model of a family, to be copied, and batches."""
    model, first = build(family, BATCH)
    return model, [first, *(load_tiny(family).example_inputs(model, BATCH) for _ in range(3))]


def blocks_of(model: Any) -> list[nn.Module]:
    stacks = ("blocks", "transformer_blocks", "single_transformer_blocks")
    return [block for name in stacks for block in getattr(model, name, ())]


# What a program does, with or without us.

Gradients = dict[str, Tensor]
AddTerm = Callable[[Tensor, nn.Module, Inputs, float, int], Tensor]
"""Makes the loss to call backward on: of the loss, the model, its inputs, the loss's factor, and the step."""


class Run:
    """A run of a program.

    Args:
        program: Which one.
        term: Adds the term to each loss; None where LayerSync is switched on.

    Attributes:
        taken: For each training the gradients of every step that was taken.
        sizes: For each of them the largest norm that its gradients had, before later losses took them back.
        counted: Steps with a term.
    """

    def __init__(self, program: Program, term: AddTerm | None) -> None:
        self.program, self.term = program, term
        self.taken: list[list[Gradients]] = []
        self.sizes: list[list[float]] = []
        self.counted = 0

    def __call__(self) -> None:
        again = self.program.again
        model = copy.deepcopy(prototype(self.program.family)[0])
        if self.program.trial:
            optimiser = torch.optim.SGD(model.parameters())
            for inputs in prototype(self.program.family)[1][:2]:
                main_loss(model(**inputs)).backward()
            optimiser.zero_grad()
            del optimiser
        self.train(model)
        if again:
            kept = model if again == "further model" else None
            if again != "same model":
                model = copy.deepcopy(prototype(self.program.family)[0])
            gc.collect()
            self.train(model)
            del kept

    def train(self, model: Any) -> None:
        program, batches = self.program, prototype(self.program.family)[1]
        self.taken.append([])
        self.sizes.append([])
        size = 0.0
        if program.reentrant is not None:
            model.enable_gradient_checkpointing(
                lambda function, *arguments: checkpoint(function, *arguments, use_reentrant=program.reentrant)
            )
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        parts = [trained[number :: program.optimisers] for number in range(program.optimisers)]
        backward, accumulate, scaler, accelerator = self.backward(model)
        optimisers: list[Any] = []
        now = losses = used = 0
        for number, step in enumerate(program.steps):
            while parts and (number >= program.joins or len(parts) > 1 or not optimisers):
                optimiser = torch.optim.SGD(parts.pop(0), lr=0.01)
                if program.replaced and not optimisers:
                    optimiser.step = MethodType(plain_step, optimiser)  # type: ignore[method-assign]
                optimisers.append(accelerator.prepare(optimiser) if accelerator else optimiser)
            if number == 2:
                freeze(model, program.freeze)
            beside(model, batches[-1], step.before)
            if "before" in program.extra:
                backward(further_loss(program.extra, model))
            for weight in step.weights:
                inputs = batches[used % len(batches)]
                used += 1
                losses += 1
                with accumulate():
                    output = model(**inputs)
                    output = getattr(output, "sample", output)
                    loss, factor = self.loss(model, output, weight, batches[0])
                    keep: dict[str, Any] = {"retain_graph": program.extra == "again"}
                    if program.way == "gradient" and self.term is None:
                        backward(loss, grad_tensors=torch.tensor(factor), **keep)
                    else:
                        loss = loss * factor if program.way == "gradient" else loss
                        backward(loss if self.term is None else self.term(loss, model, inputs, factor, now), **keep)
                    if program.extra == "again":
                        backward(output.abs().mean())
                    del output, loss
                size = max(size, norm(scaler, model))
            if "after" in program.extra:
                backward(further_loss(program.extra, model))
            if step.ending in ("taken", "overflow"):
                gradients = {
                    name: parameter.grad / (scaler.get_scale() if scaler else 1)
                    for name, parameter in model.named_parameters()
                    if parameter.grad is not None
                }
                for optimiser in optimisers:
                    if step.ending == "overflow":
                        overflow(optimiser)
                    scaler.step(optimiser) if scaler else optimiser.step()
                if scaler:
                    scaler.update()
                if step.ending == "taken":
                    self.taken[-1].append(gradients)
                    self.sizes[-1].append(size)
                    if losses and is_due(program, now):
                        self.counted += 1
                    now += losses > 0
                losses = 0
            if step.ending != "kept":
                model.zero_grad()
                size = 0.0

    def backward(self, model: nn.Module) -> tuple[Any, Any, Any, Any]:
        """Return what runs backward, a context for a loss and its backward, the scaler, and the accelerator."""
        if self.program.way == "scaler":
            scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
            return lambda loss, **more: scaler.scale(loss).backward(**more), contextlib.nullcontext, scaler, None
        if self.program.way in ("plain", "gradient"):
            return torch.autograd.backward, contextlib.nullcontext, None, None
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=divisor(self.program))
        accelerator.prepare(model)
        return accelerator.backward, lambda: accelerator.accumulate(model), None, accelerator

    def loss(self, model: nn.Module, output: Tensor, weight: float, other: Inputs) -> tuple[Tensor, float]:
        """Return a loss, and its factor by the rule."""
        program = self.program
        if program.loss == "sum":
            loss = output.square().flatten(1).mean(1).sum() / BATCH
        else:
            loss = main_loss(output)
            loss = loss.exp().log() if program.loss == "curved" else loss
        share = weight / program.divide
        if program.extra == "+ second":
            more = 0.1 * output.abs().mean()
        elif program.extra == "+ forward":
            more = main_loss(model(**other))
        else:
            more = further_loss(program.extra, model)
        if program.apart:
            return loss * weight / program.divide + more, 1.0  # only a factor of the whole can be read
        if program.extra.startswith("+"):
            loss = loss + more
        return (loss if program.way == "gradient" else loss * weight / program.divide), share


def norm(scaler: Any, model: nn.Module) -> float:
    """Return the largest norm of a parameter's gradient."""
    norms = [float(parameter.grad.norm()) for parameter in model.parameters() if parameter.grad is not None]
    return max(norms, default=0.0) / (scaler.get_scale() if scaler else 1)


def divisor(program: Program) -> int:
    """Return what the library that runs backward divides by."""
    return len(program.steps[0].weights) if program.way == "divides" else 1


def further_loss(kind: str, model: nn.Module) -> Tensor:
    """Return a loss that depends on no forward."""
    weight = next(blocks_of(model)[0].parameters()) if "penalty" in kind else torch.ones(3, requires_grad=True)
    return 0.1 * weight.square().sum()


def plain_step(self: torch.optim.Optimizer, closure: Any = None) -> None:
    with torch.no_grad():
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter -= group["lr"] * parameter.grad


def overflow(optimiser: torch.optim.Optimizer) -> None:
    weights = (parameter for group in optimiser.param_groups for parameter in group["params"])
    next(weight.grad for weight in weights if weight.grad is not None).fill_(torch.inf)


def freeze(model: nn.Module, what: str) -> None:
    blocks = blocks_of(model)
    for module in blocks[-1:] if what == "last block" else [model] if what else []:
        module.requires_grad_(False)
    if what == "but the first":
        blocks[0].requires_grad_(True)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.grad = None


def beside(model: nn.Module, inputs: Inputs, what: str) -> None:
    """Run the model for nothing."""
    if what == "validation":
        with torch.no_grad():
            model(**inputs)
    elif what == "unused":
        model(**inputs)
    elif what == "failure":
        handle = blocks_of(model)[1].register_forward_pre_hook(fail)
        with contextlib.suppress(ArithmeticError):
            model(**inputs)
        handle.remove()


def fail(*_: Any) -> None:
    raise ArithmeticError("out of memory, say")


# What is right, by docs/run.md.


def scheduled(program: Program, step: int) -> float:
    """Return the factor of the term at a step."""
    warmup, decay, _ = program.schedule
    if not is_due(program, step):
        return 0.0
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / decay)) if decay else 1.0


def is_near(one: float, other: float) -> bool:
    return abs(one - other) < NEAR


def is_share(factor: float) -> bool:
    return factor > 0 and is_near(factor * round(1 / factor), 1)


def first_factors(program: Program) -> set[float]:
    """Return the factors that are seen before the first step."""
    found = set()
    for weight in first_step(program).weights:
        factor = 1.0 if program.apart else abs(weight) / program.divide
        summed = program.loss == "sum" and not program.extra.startswith("+")
        if summed and factor and not is_share(factor):
            factor /= BATCH  # no mean, so it is a sum with a factor
        if factor and program.way in ("accelerate", "divides") and not is_share(factor):
            factor = 1.0  # where a library runs backward, it is a weight, such as that of a timestep
        if factor:
            found.add(factor)
    return found


def share(program: Program) -> float | None:
    """Return the share of one loss in a step; None if it cannot be known."""
    if program.given is not None:
        return 1 / program.given
    if program.way == "divides" and divisor(program) > 1:
        return 1 / divisor(program)
    factors, losses = first_factors(program), len(first_step(program).weights)
    if all(is_near(factor, 1) for factor in factors):
        return 1.0
    if all(is_near(factor, 1 / losses) for factor in factors):
        return 1 / losses
    return None


def is_told(program: Program) -> bool:
    """Return whether the share is given."""
    return program.given is not None or (program.way == "divides" and divisor(program) > 1)


# These may be refused. What is refused otherwise is an error, and so is any of these that is trained wrongly.
UNDECIDABLE: dict[str, Callable[[Program], bool]] = {
    "the first step has a factor that is neither 1 nor 1 over its losses, or several": lambda program: (
        share(program) is None
    ),
    "the first step has several losses, undivided, and not only constants after their reduction": lambda program: (
        len(first_step(program).weights) > 1
        and (program.loss == "curved" or program.extra.startswith("+"))
        and all(is_near(factor, 1) for factor in first_factors(program))
    ),
    "the first step has several weighted losses, which accelerate does not divide": lambda program: (
        program.way in ("accelerate", "divides")
        and len(first_step(program).weights) > 1
        and any(abs(weight) not in (0, 1) for weight in first_step(program).weights)
    ),
    "the first step has as many losses as its sums have elements": lambda program: (
        program.loss == "sum" and len(first_step(program).weights) == BATCH
    ),
}


def why_undecidable(program: Program) -> str:
    """Return why a program may be refused; empty where it must be trained."""
    if is_told(program) or first_step(program).number is None:
        return ""
    return next((why for why, holds in UNDECIDABLE.items() if holds(program)), "")


def by_hand(program: Program, of_step: float) -> AddTerm:
    """Return what adds the term to a loss.

    Args:
        program: Which program.
        of_step: The share that a loss has in a step.
    """

    def add(loss: Tensor, model: nn.Module, inputs: Inputs, factor: float, step: int) -> Tensor:
        size = scheduled(program, step) * of_step * ((factor > 0) - (factor < 0))
        if not size:
            return loss
        states = states_by_hand(model, inputs)
        term = -WEIGHT * mean_cosine(states[0], states[2], generated(inputs))
        return loss + size * divisor(program) * term

    return add


# The test.


@contextlib.contextmanager
def ours(program: Program, folder: Path) -> Iterator[tuple[Run, Any]]:
    """Switch LayerSync on, and give a run of a program and our own view of it."""
    warmup, decay, cutoff = program.schedule
    keys = {
        "layersync_warmup_steps": warmup,
        "layersync_decay_steps": decay,
        "layersync_cutoff_step": cutoff,
        **({} if program.given is None else {"layersync_accumulation_steps": program.given}),
    }
    with switched_on(folder) as launch, contextlib.redirect_stderr(io.StringIO()):
        training = launch(**keys)
        yield Run(program, None), training


def compare(found: Run, expected: Run) -> None:
    assert [len(steps) for steps in found.taken] == [len(steps) for steps in expected.taken]
    for one, other, sizes in zip(found.taken, expected.taken, expected.sizes, strict=True):
        for number, (gradients, right, size) in enumerate(zip(one, other, sizes, strict=True)):
            assert gradients.keys() == right.keys()
            rounding = 1e-5 * size
            if any(gradient.norm() > rounding for gradient in right.values()):
                try:
                    assert_same_gradients(gradients, right, tolerance=1e-4)
                except AssertionError as error:
                    raise AssertionError(f"step {number}: {error}") from None
            else:  # nothing, or losses of opposite signs that cancel out, of which roundings are left
                assert all(gradient.norm() <= rounding for gradient in gradients.values()), f"step {number}"


def check(program: Program, folder: Path) -> str:
    """Compare a program under LayerSync with what is right; return why it was refused, empty where it was not."""
    of_step, why, refused = share(program), why_undecidable(program), ""
    right = Run(program, by_hand(program, 1.0 if of_step is None else of_step))
    right()
    with ours(program, folder) as (run, training):
        try:
            run()
        except CaptureError as error:
            refused = str(error)
        counted = sum(course.steps for course in training.courses.all)
    if refused:
        assert why, f"refused: {refused}"
        assert [len(taken) for taken in run.taken] == [first_step(program).number], "refused at the wrong step"
        return why
    assert of_step is not None or first_step(program).number is None, f"trained, but {why}"
    compare(run, right)
    assert counted == right.counted
    return ""


@pytest.mark.slow
def test_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = os.environ.get("LAYERSYNC_FUZZ")
    for family in ("dit", "wan", "flux"):
        prototype(family)
    seen: Counter[str] = Counter()

    @settings(
        max_examples=int(wanted or 300),
        derandomize=not wanted,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(programs())
    def every_step_is_right(program: Program) -> None:
        seen[check(program, tmp_path)] += 1

    gc.freeze()  # what is imported by now need not be looked through by each collection of a program
    try:
        every_step_is_right()
    finally:
        gc.unfreeze()
    refused = seen.total() - seen[""]
    with capsys.disabled():
        print(f"\n{seen.total()} programs, {refused / seen.total():.0%} refused")
        for why, count in seen.most_common():
            if why:
                print(f"{count:6} {why}")
