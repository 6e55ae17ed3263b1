"""Small training programs at random, for the fuzz test of ``layersync run``."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from hypothesis import strategies as st

# The programs.


class Brief:
    """Its repr shows only what differs from the defaults, so that a failing program is easy to read."""

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
        loss: "mean"; "sum", divided by its elements; "curved", with operations other than a constant factor.
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


def is_due(program: Program, step: int) -> bool:
    warmup, decay, cutoff = program.schedule
    return not (cutoff and step >= cutoff) and not (decay and step >= warmup + decay)


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
