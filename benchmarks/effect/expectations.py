"""What was expected of the studies of depth and of settings (EXPECTED.md), beside what came out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from benchmarks.effect.arms import CUT_OFF, PAIR, VANILLA
from benchmarks.effect.depth_report import change_between, rise_between
from benchmarks.effect.paired import Estimate, estimate
from benchmarks.effect.report import text_of, trainings
from benchmarks.effect.results import Record, Results
from benchmarks.effect.settings_report import call_of, gap, outcome, right
from benchmarks.effect.tasks import DEPTHS, SETTINGS

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


def held_out(record: Record) -> float:
    """Return the held-out loss at the end."""
    return record.marks[record.steps].held_out


def mean(results: Results, task: str, arm: str, of: Of) -> float | None:
    """Return the mean of a measure over the seeds of an arm; None without a training."""
    values = [value for record in trainings(results, task, arm) if (value := of(record)) is not None]
    return fmean(values) if values else None


def difference(results: Results, task: str, arm: str, base: str) -> Estimate | None:
    """Return by how much the held-out loss differs between two arms; None without a seed that both have."""
    bases = {record.seed: held_out(record) for record in trainings(results, task, base)}
    ours = {record.seed: held_out(record) for record in trainings(results, task, arm)}
    found = [ours[seed] - bases[seed] for seed in ours if seed in bases]
    return estimate(found) if found else None


def of_depth(results: Results) -> list[Outcome]:
    """Return the outcomes of the study of depth, in the order of EXPECTED.md."""

    def each(expected: str, look: Callable[[Results, int], Found | None]) -> Outcome:
        found = {blocks: look(results, blocks) for blocks in sorted(DEPTHS)}
        said = [f"{blocks} blocks: {one[0]}" for blocks, one in found.items() if one is not None]
        kept = None if None in found.values() else all(one is not None and one[1] for one in found.values())
        return Outcome(expected, "; ".join(said) or "–", kept)

    costs = {blocks: difference(results, f"digits-{blocks}", PAIR, VANILLA) for blocks in sorted(DEPTHS)}
    falls = [cost.mean for cost in costs.values() if cost is not None]
    return [
        each(
            "1. Without the blocks between, the loss rises with the pair by less than a quarter of vanilla's rise",
            _rises,
        ),
        each("2. With the pair, a block between changes its tokens by at most half as much as in vanilla", _changes),
        Outcome(
            "3. What the pair costs in held-out loss falls with depth",
            "; ".join(f"{blocks} blocks: {_signed(cost)}" for blocks, cost in costs.items() if cost) or "–",
            all(one > other for one, other in pairwise(falls)) if len(falls) == len(costs) else None,
        ),
        each("4. Cut off at a third, at least half of vanilla's rise comes back; at two thirds, less", _comes_back),
        each("5. Stochastic depth has a smaller rise than the pair, at a held-out loss that is not higher", _dropped),
        each("6. Never there, the held-out loss is within 2 % of vanilla's at 12 and 24 blocks, and not at 8", _absent),
        each("7. The pair lowers the held-out loss at no depth, and the gap at noise 0.5 is below 0.05", _gains),
    ]


def _compared(results: Results, blocks: int, arm: str, base: str, of: Of) -> tuple[float, float] | None:
    ours, theirs = (mean(results, f"digits-{blocks}", name, of) for name in (arm, base))
    return None if ours is None or theirs is None else (ours, theirs)


def _rises(results: Results, blocks: int) -> Found | None:
    found = _compared(results, blocks, PAIR, VANILLA, rise_between)
    return found and (f"{found[0]:.1%} against {found[1]:.1%}", found[0] < found[1] / 4)


def _changes(results: Results, blocks: int) -> Found | None:
    found = _compared(results, blocks, PAIR, VANILLA, change_between)
    return found and (f"{found[0]:.3f} against {found[1]:.3f}", found[0] <= found[1] / 2)


def _comes_back(results: Results, blocks: int) -> Found | None:
    early = _compared(results, blocks, CUT_OFF, VANILLA, rise_between)
    late = _compared(results, blocks, LATE, VANILLA, rise_between)
    if early is None or late is None:
        return None
    said = f"{early[0]:.1%} and {late[0]:.1%} of vanilla's {early[1]:.1%}"
    return said, early[0] >= early[1] / 2 and late[0] < early[0]


def _dropped(results: Results, blocks: int) -> Found | None:
    found = _compared(results, blocks, STOCHASTIC, PAIR, rise_between)
    more = difference(results, f"digits-{blocks}", STOCHASTIC, PAIR)
    if found is None or more is None:
        return None
    return f"{found[0]:.1%} against {found[1]:.1%}, loss {_signed(more)}", found[0] < found[1] and more.low <= 0


def _absent(results: Results, blocks: int) -> Found | None:
    found = _compared(results, blocks, ABSENT, VANILLA, held_out)
    if found is None:
        return None
    more = found[0] / found[1] - 1
    return f"{more:+.1%}".replace("-", "−"), (abs(more) < 0.02) == (blocks > min(DEPTHS))


def _gains(results: Results, blocks: int) -> Found | None:
    cost = difference(results, f"digits-{blocks}", PAIR, VANILLA)
    lead = mean(results, f"digits-{blocks}", VANILLA, gap)
    if cost is None or lead is None:
        return None
    return f"loss {_signed(cost)}, gap {lead:+.3f}".replace("-", "−"), cost.high >= 0 and lead < 0.05


def _signed(found: Estimate) -> str:
    return text_of(found, "+.4f", None)


def of_settings(results: Results) -> list[Outcome]:
    """Return the outcomes of the study of settings, in the order of EXPECTED.md."""
    calls = {task: call.answer for task in SETTINGS if (call := call_of(results, task)) is not None}
    helped = {task: found for task in SETTINGS if (found := outcome(results, task)) is not None}
    yes, gained = ([SETTINGS[task].title for task, it in found.items() if it == "yes"] for found in (calls, helped))
    costs = {task: cost.mean for task in helped if (cost := difference(results, task, PAIR, VANILLA))}
    cuts = {task: cost.mean for task in helped if (cost := difference(results, task, CUT_OFF, VANILLA))}
    nearer = [task for task in helped if abs(cuts[task]) < abs(costs[task])]
    most = max(costs, key=costs.__getitem__, default="glyphs-6")
    correct, known = right(results)
    whole = len(helped) == len(SETTINGS)
    return [
        Outcome(
            "1. The rule says no in at least six of the seven settings",
            f"no in {len(calls) - len(yes)} of {len(calls)}{_named(yes)}",
            len(yes) <= 1 if len(calls) == len(SETTINGS) else None,
        ),
        Outcome(
            "2. LayerSync helps in at most one",
            f"in {len(gained)} of {known}{_named(gained)}",
            len(gained) <= 1 if whole else None,
        ),
        Outcome(
            "3. At least six predictions are right",
            f"{correct} of {known}; to say no always would be right in {known - len(gained)}",
            correct >= 6 if whole else None,
        ),
        Outcome(
            "4. The held-out loss is higher with the pair everywhere, and most at 6 blocks",
            f"in {sum(cost > 0 for cost in costs.values())} of {known}, most in {SETTINGS[most].title}",
            min(costs.values()) > 0 and most == "glyphs-6" if whole else None,
        ),
        Outcome(
            "5. Cut off at a third, the held-out loss is nearer to vanilla's than with the pair to the end",
            f"in {len(nearer)} of {known}",
            len(nearer) == known if whole else None,
        ),
    ]


def _named(titles: list[str]) -> str:
    return f" ({', '.join(titles)})" if titles else ""
