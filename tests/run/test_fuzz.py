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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple

import accelerate
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersync_core.errors import CaptureError
from layersync_core.families.registry import load_tiny
from tests.models import Inputs, assert_same_gradients, build, generated, mean_cosine, states_by_hand
from tests.run.inside import WEIGHT, main_loss, switched_on

BATCH = 2
SCALE = 16.0
NEAR = 1e-6


# The programs.


class Brief:
    """Shown by what is not as usual, so that a program that fails is read at a glance."""

    def __repr__(self) -> str:
        told = {item.name: getattr(self, item.name) for item in fields(self)}  # type: ignore[arg-type]
        usual = {item.name: item.default for item in fields(self)}  # type: ignore[arg-type]
        shown = ", ".join(f"{name}={value!r}" for name, value in told.items() if value != usual[name])
        return f"{type(self).__name__}({shown})"


@dataclass(frozen=True, repr=False)
class Step(Brief):
    """What a program does until it takes a step, or should have.

    Attributes:
        weights: Of its losses.
        ending: "taken"; "overflow", so that a scaler skips it; no step at all, and the gradients "dropped" or "kept".
        before: What else is done with the model: "validation", a forward that is "unused", a "failure" in the middle of
            one.
    """

    weights: tuple[float, ...] = (1,)
    ending: str = "taken"
    before: str = ""


@dataclass(frozen=True, repr=False)
class Program(Brief):
    """A training program.

    Attributes:
        family: Of its model.
        steps: What it does.
        divide: What each loss is divided by.
        way: What runs backward: "plain"; a "gradient" that it begins with is the factor of the loss; a "scaler";
            "accelerate", which divides if it is asked to ("divides").
        loss: "mean"; "sum", divided by its elements; "curved", with operations that are no constant factor.
        extra: A further loss: of a "penalty" or of something "else" in a backward of its own before or after the
            others; "again" of the same output in a backward of its own; in the sum "+ penalty", "+ else", "+ second" of
            the same output, or "+ forward" of another one.
        apart: What is added has neither the weight nor the divisor of the main loss.
        optimisers: How many share the weights of the model.
        joins: The step before which the last optimiser is made.
        replaced: The ``step`` of the first optimiser is replaced on the instance.
        freeze: What is frozen before the third step: the "last block", or all "but the first".
        reentrant: Kind of checkpointing; None without.
        schedule: Steps of warm-up and of decay, and the step of the cut-off.
        given: ``layersync_accumulation_steps``.
        trial: Before all, losses of the model with an optimiser that goes without a step.
        again: What is trained when all is done, by the same steps: a "new model" when the first is gone, a "further
            model" beside it, or the "same model".
    """

    family: str = "dit"
    steps: tuple[Step, ...] = (Step(),)
    divide: int = 1
    way: str = "plain"
    loss: str = "mean"
    extra: str = ""
    apart: bool = False
    optimisers: int = 1
    joins: int = 0
    replaced: bool = False
    freeze: str = ""
    reentrant: bool | None = None
    schedule: tuple[int, int, int] = (0, 0, 0)
    given: int | None = None
    trial: bool = False
    again: str = ""


@st.composite
def programs(draw: st.DrawFn) -> Program:
    def often(usual: Any, *others: Any) -> Any:
        return draw(st.sampled_from([*[usual] * len(others), *others]))

    way = often("plain", "gradient", "scaler", "accelerate", "divides")
    losses = draw(st.integers(1, 4))
    regular = way == "divides" or draw(st.booleans())  # as most programs are
    endings = ["dropped", "kept"] + ["overflow"] * (4 if way == "scaler" else 0)
    steps = []
    for number in range(draw(st.integers(1, 3))):
        count = losses if regular else draw(st.integers(0 if number and way != "scaler" else 1, 4))
        weights = [1.0] * count
        if not regular or number:
            weight = st.sampled_from([1.0, 0.0, -1.0, 0.5, 3.0])
            weights = [draw(weight)] * count if draw(st.booleans()) else [draw(weight) for _ in range(count)]
        ending = "taken" if regular and way != "scaler" else often("taken", *endings)
        steps.append(Step(tuple(weights), ending, often("", "validation", "unused", "failure")))
    extra = often("", "penalty before", "penalty after", "else before", "else after", "again", "+ penalty", "+ else")
    if not extra:
        extra = often("", "+ second", "+ forward")
    optimisers = often(1, 2)
    reentrant = often(None, False, True)
    program = Program(
        family=draw(st.sampled_from(["dit", "wan", "flux"])),
        steps=tuple(steps),
        divide=1 if way == "divides" else draw(st.sampled_from([1, losses] if regular else [1, 2, 3, 4])),
        way=way,
        loss=often("mean", "sum", "curved"),
        extra=extra,
        apart=extra.startswith("+") and way != "gradient" and draw(st.booleans()),
        optimisers=optimisers,
        joins=0 if optimisers == 1 else draw(st.integers(0, 2)),
        replaced=often(False, True),
        freeze=often("", "last block", *([] if reentrant else ["but the first"])),
        reentrant=reentrant,
        schedule=often((0, 0, 0), (2, 0, 0), (0, 3, 0), (0, 0, 2), (1, 2, 0), (1, 0, 3)),
        given=often(None, losses, 1, 2),
        trial=draw(st.integers(0, 4)) == 4,
        again=often("", *[""] * 3, "new model", "further model", "same model"),
    )
    if program.given is not None and len(first_step(program).weights) > program.given:
        # Left out, since it is not right: until the first step, losses may be counted as steps, which is what a program
        # without an optimiser needs. The schedule runs ahead within that step, and is right again after it.
        return replace(program, schedule=(0, 0, 0))
    return program


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
        counted: Steps with a term.
    """

    def __init__(self, program: Program, term: AddTerm | None) -> None:
        self.program, self.term = program, term
        self.taken: list[list[Gradients]] = []
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
                    if losses and is_due(program, now):
                        self.counted += 1
                    now += losses > 0
                losses = 0
            if step.ending != "kept":
                model.zero_grad()

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


def is_due(program: Program, step: int) -> bool:
    warmup, decay, cutoff = program.schedule
    return not (cutoff and step >= cutoff) and not (decay and step >= warmup + decay)


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


class First(NamedTuple):
    """The first step that is taken and has a loss that counts: its number, None without one, and its weights."""

    number: int | None
    weights: list[float]


def first_step(program: Program) -> First:
    weights: list[float] = []
    number = now = 0
    for step in program.steps:
        weights += step.weights
        if step.ending == "taken":
            if is_due(program, now) and weights and (any(weights) or program.apart):
                return First(number, weights)
            number += 1
            now += bool(weights)
        if step.ending in ("taken", "overflow"):
            weights = []
    return First(None, [])


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
    """Return the share that one loss has in a step; None where nobody can know."""
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
    """Return whether somebody says the share."""
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


def compare(found: Sequence[Sequence[Gradients]], expected: Sequence[Sequence[Gradients]]) -> None:
    assert [len(steps) for steps in found] == [len(steps) for steps in expected]
    for one, other in zip(found, expected, strict=True):
        for number, (gradients, right) in enumerate(zip(one, other, strict=True)):
            assert gradients.keys() == right.keys()
            if any(gradient.any() for gradient in right.values()):
                try:
                    assert_same_gradients(gradients, right, tolerance=1e-4)
                except AssertionError as error:
                    raise AssertionError(f"step {number}: {error}") from None
            else:
                assert not any(gradient.any() for gradient in gradients.values()), f"step {number}"


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
    compare(run.taken, right.taken)
    assert counted == right.counted
    return ""


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

    every_step_is_right()
    refused = seen.total() - seen[""]
    with capsys.disabled():
        print(f"\n{seen.total()} programs, {refused / seen.total():.0%} refused")
        for why, count in seen.most_common():
            if why:
                print(f"{count:6} {why}")
