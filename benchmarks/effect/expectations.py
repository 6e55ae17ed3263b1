"""What was expected of the studies of depth, of settings and of the repetition (EXPECTED.md), and what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from benchmarks.effect.arms import CUT_OFF, PAIR, SETTING_ARMS, VANILLA
from benchmarks.effect.depth_report import change_between, rise_between
from benchmarks.effect.paired import Estimate, estimate
from benchmarks.effect.report import text_of
from benchmarks.effect.results import Call, Record, Results
from benchmarks.effect.settings_report import call_of, distance, gap, outcome, right
from benchmarks.effect.tasks import DEEP_TASKS, DEPTHS, REPEATED_SETTING, SETTINGS
from benchmarks.effect.trained import difference, differences, diverged, held_out, is_whole, trainings

LATE, STOCHASTIC, ABSENT = "cut-off-late", "stochastic-depth", "never-there"
Of = Callable[[Record], "float | None"]
"""A measure of a training; None where it has none."""
Found = tuple[str, bool]
"""What was measured at one depth, and whether it is as expected."""


@dataclass(frozen=True)
class Outcome:
    """An expectation and what came of it.

    Attributes:
        expected: The expectation, in short.
        measured: The figures.
        kept: Whether it came out so; None while trainings are missing.
    """

    expected: str
    measured: str
    kept: bool | None


def mean(results: Results, task: str, arm: str, of: Of) -> float | None:
    """Return the mean of a measure over the seeds of an arm; None without a training."""
    values = [value for record in trainings(results, task, arm) if (value := of(record)) is not None]
    return fmean(values) if values else None


def compared(results: Results, task: str, arm: str, base: str, of: Of) -> tuple[float, float] | None:
    """Return the means of a measure in two arms over the seeds that both have; None without one."""
    ours, theirs = ({record.seed: of(record) for record in trainings(results, task, name)} for name in (arm, base))
    both = [(one, theirs.get(seed)) for seed, one in ours.items()]
    pairs = [(one, other) for one, other in both if one is not None and other is not None]
    return (fmean(one for one, _ in pairs), fmean(other for _, other in pairs)) if pairs else None


def of_depth(results: Results) -> list[Outcome]:
    """Return the outcomes of the study of depth, in the order of EXPECTED.md."""
    depths = sorted(DEPTHS)

    def each(expected: str, look: Callable[[Results, str], Found | None], *arms: str) -> Outcome:
        found = {blocks: look(results, f"digits-{blocks}") for blocks in depths}
        said = [f"{blocks} blocks: {one[0]}" for blocks, one in found.items() if one is not None]
        whole = all(is_whole(results, f"digits-{blocks}", VANILLA, *arms) for blocks in depths)
        kept = all(one is not None and one[1] for one in found.values()) if whole else None
        return Outcome(expected, "; ".join(said).replace("-", "−") or "–", kept)

    return [
        each("1. The pair's rise without the blocks between is less than a quarter of vanilla's", _rises, PAIR),
        each("2. With the pair, a block between changes its tokens by at most half as much", _changes, PAIR),
        _falls(results, depths),
        each(
            "4. Cut off at a third, at least half of vanilla's rise comes back; at two thirds, less",
            _returns,
            CUT_OFF,
            LATE,
        ),
        each(
            "5. With stochastic depth the rise is below the pair's, and the loss is not higher",
            _dropped,
            PAIR,
            STOCHASTIC,
        ),
        each(
            "6. A model that never had these blocks is within 2 % of vanilla's loss at 12 and 24 blocks, not at 8",
            _absent,
            ABSENT,
        ),
        each("7. The pair lowers the held-out loss at no depth", _lowers, PAIR),
        each("7. The gap at noise 0.5 is below 0.05 at each depth", _gap),
    ]


def _rises(results: Results, task: str) -> Found | None:
    found = compared(results, task, PAIR, VANILLA, rise_between)
    return found and (f"{found[0]:.1%} against {found[1]:.1%}", found[0] < found[1] / 4)


def _changes(results: Results, task: str) -> Found | None:
    found = compared(results, task, PAIR, VANILLA, change_between)
    return found and (f"{found[0]:.3f} against {found[1]:.3f}", found[0] <= found[1] / 2)


def _falls(results: Results, depths: list[int]) -> Outcome:
    costs = [differences(results, f"digits-{blocks}", PAIR, VANILLA) for blocks in depths]
    said = [
        f"{blocks} blocks: {_signed(estimate([*cost.values()]))}"
        for blocks, cost in zip(depths, costs, strict=True)
        if cost
    ]
    steps = {
        f"{blocks} minus {deeper} blocks": estimate([one[seed] - other[seed] for seed in one if seed in other])
        for (blocks, one), (deeper, other) in pairwise(zip(depths, costs, strict=True))
        if one.keys() & other.keys()
    }
    whole = all(is_whole(results, f"digits-{blocks}", VANILLA, PAIR) for blocks in depths)
    return Outcome(
        "3. The pair costs less held-out loss at 12 blocks than at 8, and less at 24 than at 12, beyond chance",
        "; ".join([*said, *(f"{names}: {_signed(step)}" for names, step in steps.items())]) or "–",
        len(steps) == len(depths) - 1 and all(step.low > 0 for step in steps.values()) if whole else None,
    )


def _returns(results: Results, task: str) -> Found | None:
    early = compared(results, task, CUT_OFF, VANILLA, rise_between)
    late = compared(results, task, LATE, VANILLA, rise_between)
    if early is None or late is None:
        return None
    said = f"rises of {early[0]:.1%} and {late[0]:.1%}, vanilla's {early[1]:.1%}"
    return said, early[0] >= early[1] / 2 and late[0] < early[0]


def _dropped(results: Results, task: str) -> Found | None:
    found = compared(results, task, STOCHASTIC, PAIR, rise_between)
    more = difference(results, task, STOCHASTIC, PAIR)
    if found is None or more is None:
        return None
    return f"{found[0]:.1%} against {found[1]:.1%}, loss {_signed(more)}", found[0] < found[1] and more.low <= 0


def _absent(results: Results, task: str) -> Found | None:
    found = compared(results, task, ABSENT, VANILLA, held_out)
    if found is None:
        return None
    more = found[0] / found[1] - 1
    return f"{more:+.1%}", (abs(more) < 0.02) == (DEEP_TASKS[task].blocks > min(DEPTHS))


def _lowers(results: Results, task: str) -> Found | None:
    cost = difference(results, task, PAIR, VANILLA)
    return None if cost is None else (_signed(cost), cost.high >= 0)


def _gap(results: Results, task: str) -> Found | None:
    lead = mean(results, task, VANILLA, gap)
    return None if lead is None else (f"{lead:+.3f}", lead < 0.05)


def _signed(found: Estimate) -> str:
    return text_of(found, "+.4f", None)


def of_settings(results: Results) -> list[Outcome]:
    """Return the outcomes of the study of settings, in the order of EXPECTED.md."""
    calls = {task: call for task in SETTINGS if (call := call_of(results, task)) is not None}
    helped = {task: found for task in SETTINGS if (found := outcome(results, task)) is not None}
    yes = [SETTINGS[task].title for task, call in calls.items() if call.answer == "yes"]
    gained = [SETTINGS[task].title for task, found in helped.items() if found == "yes"]
    costs = {task: cost for task in helped if (cost := difference(results, task, PAIR, VANILLA))}
    cuts = {task: cost for task in helped if (cost := difference(results, task, CUT_OFF, VANILLA))}
    nearer = [task for task in helped if abs(cuts[task].mean) < abs(costs[task].mean)]
    most = max(costs, key=lambda task: costs[task].mean, default="glyphs-6")
    correct, known = right(results)
    called = len(calls) == len(SETTINGS)
    whole = called and all(is_whole(results, task, *SETTING_ARMS) for task in SETTINGS)
    wants = {SETTINGS[task].title: wanted(call) for task, call in calls.items() if call.answer == "no"}
    leads = {
        SETTINGS[task].title: max((it.lead or 0.0 for it in call.compared), default=0.0) for task, call in calls.items()
    }
    largest = max(leads, key=leads.__getitem__, default="")
    deep = [task for task in SETTINGS if SETTINGS[task].blocks == 24]
    as_said = {SETTINGS[task].title: "a gap" for task in deep} | {SETTINGS["glyphs-6"].title: "depth"}
    return [
        Outcome(
            "1. The rule says no in at least six of the seven settings",
            f"no in {len(wants)} of {len(calls)}{named(yes)}",
            len(wants) >= 6 if called else None,
        ),
        Outcome(
            "1. It does so for want of a gap at 24 blocks, and of depth at 6",
            "; ".join(f"{title}: for want of {want}" for title, want in wants.items()) or "–",
            as_said.items() <= wants.items() if called else None,
        ),
        Outcome(
            "1. The likeliest yes, with the largest lead of a teacher, is glyphs by pixel",
            f"the largest lead is in {largest}" if leads else "–",
            largest == SETTINGS["glyphs-12-fine"].title if called else None,
        ),
        Outcome(
            "2. LayerSync helps in at most one",
            f"in {len(gained)} of {known}{named(gained)}",
            len(gained) <= 1 if whole else None,
        ),
        Outcome(
            "3. At least six predictions are right",
            f"{correct} of {known}; to say no always would be right in {known - len(gained)}",
            correct >= 6 if whole else None,
        ),
        Outcome(
            "4. The held-out loss is higher with the pair everywhere, and most at 6 blocks",
            f"shown in {sum(cost.low > 0 for cost in costs.values())} of {known}, most in {SETTINGS[most].title}",
            all(cost.low > 0 for cost in costs.values()) and most == "glyphs-6" if whole else None,
        ),
        Outcome(
            "5. Cut off at a third, the held-out loss is nearer to vanilla's than with the pair to the end",
            f"in {len(nearer)} of {known}",
            len(nearer) == known if whole else None,
        ),
    ]


def of_repetition(results: Results) -> list[Outcome]:
    """Return the outcomes of the repetition, in the order of EXPECTED.md."""
    ratio, helped = distance(results, REPEATED_SETTING, PAIR), repeated(results)
    costs = differences(results, REPEATED_SETTING, PAIR, VANILLA)
    return [
        Outcome(
            "1. The pair brings samples of discs closer to the data, by a ratio between 0.6 and 0.9",
            "–" if ratio is None else text_of(ratio, ".3f", 1.0),
            None if helped is None else helped and ratio is not None and 0.6 <= ratio.mean <= 0.9,
        ),
        Outcome(
            "2. The held-out loss is higher with it on each seed",
            ", ".join(f"{cost:+.4f}" for cost in costs.values()).replace("-", "−") or "–",
            None if helped is None else len(costs) == len(results.jobs) / 2 and min(costs.values()) > 0,
        ),
    ]


def repeated(results: Results) -> bool | None:
    """Return whether the pair helped in the repetition, by its interval; None while trainings are missing."""
    if results.missing(results.jobs):
        return None
    ratio = distance(results, REPEATED_SETTING, PAIR)
    return ratio is not None and ratio.high < 1 and not diverged(results, REPEATED_SETTING, PAIR)


def wanted(call: Call) -> str:
    """Return for want of what a prediction says no."""
    known = {"no teacher separates": "a gap", "no depth to spare": "depth", "saturated": "something to learn"}
    return next((want for text, want in known.items() if text in call.reason), "another")


def named(titles: list[str]) -> str:
    """Return titles in brackets, after a space; nothing where there are none."""
    return f" ({'; '.join(titles)})" if titles else ""
