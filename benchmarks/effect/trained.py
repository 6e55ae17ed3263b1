"""The finished trainings of an arm, and what two arms of a task have in common: their seeds."""

from __future__ import annotations

from benchmarks.effect.paired import Estimate, estimate
from benchmarks.effect.results import Record, Results


def header(titles: list[str]) -> list[str]:
    """Return the first two lines of a Markdown table."""
    return [f"| {' | '.join(titles)} |", "|" + " --- |" * len(titles)]


def trainings(results: Results, task: str, arm: str) -> list[Record]:
    """Return the finished trainings of an arm, by seed."""
    found = [it for it in results.records.values() if (it.task, it.arm) == (task, arm) and it.steps in it.marks]
    return sorted(found, key=lambda record: record.seed)


def diverged(results: Results, task: str, arm: str) -> int:
    """Return how many trainings of an arm diverged."""
    return sum((it.task, it.arm) == (task, arm) and it.diverged is not None for it in results.records.values())


def is_whole(results: Results, task: str, *arms: str) -> bool:
    """Return whether every planned training of some arms of a task has ended, of all of them if none is named."""
    return not any(job.task == task and (not arms or job.arm in arms) for job in results.missing(results.jobs))


def count_of(results: Results, task: str, arm: str) -> str:
    """Return the number of finished trainings of an arm, and of those that diverged."""
    lost = diverged(results, task, arm)
    return f"{len(trainings(results, task, arm))}" + f" ({lost} diverged)" * bool(lost)


def held_out(record: Record) -> float:
    """Return the held-out loss at the end."""
    return record.marks[record.steps].held_out


def differences(results: Results, task: str, arm: str, base: str) -> dict[int, float]:
    """Return by how much the held-out loss differs between two arms, by seed."""
    bases = {record.seed: held_out(record) for record in trainings(results, task, base)}
    ours = {record.seed: held_out(record) for record in trainings(results, task, arm)}
    return {seed: ours[seed] - bases[seed] for seed in ours if seed in bases}


def difference(results: Results, task: str, arm: str, base: str) -> Estimate | None:
    """Return by how much the held-out loss differs between two arms; None without a seed that both have."""
    found = differences(results, task, arm, base)
    return estimate([*found.values()]) if found else None
