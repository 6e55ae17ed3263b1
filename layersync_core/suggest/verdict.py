"""Which pairs the measurements support, kept apart from the paper's rules (arXiv 2510.12581, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from statistics import NormalDist
from typing import Any

from layersync_core.losses.pairing import pair_advice, suggest_pair
from layersync_core.protocol import Block
from layersync_core.suggest.figures import Figures, Recommended, Verdict

SATURATED = 0.95
"""Centred cosine above which a student has next to nothing left to learn from its teacher."""
STRANGERS = 0.05
"""CKA below which two blocks share next to nothing, so there is no sign that one could become the other."""
SPARE = 0.1
"""Share by which the loss may rise without the blocks between, which LayerSync brings closer to the identity."""
IDLE = 0.02
"""Below this rise they do so little that nothing asks to give them back."""
STOP = 1 / 3
"""Share of the training after which to switch the term off otherwise: a rule of thumb, whose use was not shown."""
STUDENT_DEPTHS, TEACHER_DEPTHS = (0.2, 0.45), (0.55, 0.8)
"""Where the paper's best pairs are, as fractions of the depth."""
_BEST_DEPTHS = 0.3, 0.65
_FEW = 6  # blocks; with fewer it only matters that the teacher is deeper and not the last
_MOST = 3
_NEAR = 10  # blocks within 1/10 of the depth are neighbours
_CHANCE = 0.025  # that the best of all leads is as large by chance
_COARSE = 0.1  # where even such a lead could be chance, none was looked for in earnest


@dataclass(frozen=True)
class Pair:
    """Two blocks from one run of blocks of the same width and stage.

    Attributes:
        student: The shallower one.
        teacher: The deeper one.
        depths: Their relative depths in that run.
        inside: Whether the paper's rules allow them.
    """

    student: Block
    teacher: Block
    depths: tuple[float, float]
    inside: bool

    @property
    def distance(self) -> float:
        """Their distance from the depths that the paper found best."""
        return sum(abs(depth - best) for depth, best in zip(self.depths, _BEST_DEPTHS, strict=True))

    def __str__(self) -> str:
        return f"{self.student} and {self.teacher}"


def pairs_of(blocks: Sequence[Block]) -> list[Pair]:
    """Return all blocks that may be paired, the pairs nearest to the paper's depths first."""
    found = []
    runs = [list(run) for _, run in groupby(blocks, key=lambda block: (block.width, block.stage))]
    for run in runs:
        for (one, student), (other, teacher) in combinations(enumerate(run, 1), 2):
            depths = one / len(run), other / len(run)
            within = [
                low <= at <= high for at, (low, high) in zip(depths, (STUDENT_DEPTHS, TEACHER_DEPTHS), strict=True)
            ]
            # In a model with stages, depths are those within a stage, which the advice does not take into account.
            against = pair_advice(student, teacher) if len(runs) == 1 else []
            inside = depths[1] <= TEACHER_DEPTHS[1] if len(run) < _FEW else all(within) and not against
            found.append(Pair(student, teacher, depths, inside))
    return sorted(found, key=lambda pair: pair.distance)


def allowed_places(blocks: Sequence[Block]) -> list[tuple[int, int]]:
    """Return indices of student and teacher of each pair that the paper's rules allow."""
    return [(pair.student.index, pair.teacher.index) for pair in pairs_of(blocks) if pair.inside]


def recommended_places(content: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return indices of student and teacher of each recommended pair."""
    return [(pair["student"] - 1, pair["teacher"] - 1) for pair in content["recommended"]]


def judge(found: Figures) -> tuple[list[Recommended], Verdict]:
    """Return at most three pairs, the best first, and a verdict on the model as a whole."""
    if not found.cka:
        chosen = suggest_pair(found.described)
        advised = [pair for pair in pairs_of(found.described) if (pair.student, pair.teacher) == chosen]
        told = [
            Recommended(pair.student.index + 1, pair.teacher.index + 1, f"measured: nothing. {_prior(pair)}")
            for pair in advised
        ]
        return told, Verdict("unknown", "only the configuration is known, without weights, so nothing was measured")
    allowed = [pair for pair in pairs_of(found.described) if pair.inside]
    near = max(len(found.described) // _NEAR, 1)
    if not allowed:
        return [], Verdict("no", "no two blocks of the same width and stage are where the paper's rules allow a pair")
    worth = [pair for pair in allowed if not _why_not(found, pair)]
    if not worth:
        unmeasured = all(_mean(found, "cka", pair) is None for pair in allowed)
        what = (
            "nothing could be measured for the pairs that the paper's rules allow"
            if unmeasured
            else "no pair that the paper's rules allow has anything to learn"
        )
        why = f"of {allowed[0]}, the nearest to them: {_why_not(found, allowed[0])}"
        return [], Verdict("unknown" if unmeasured else "no", f"{what}; {why}")
    if not found.gap:
        ranked = _apart(worth, near)
        spared = _spared(found, ranked, worth)
        if not spared:
            return [], Verdict("no", f"these blocks are similar but not equal, but {_needed(found, worth)}")
        return [_recommend(found, pair) for pair in spared], Verdict(
            "unknown",
            "these blocks are similar but not equal, so there is something to learn; whether the deeper ones are "
            f"better was not measured, since the classes of the samples are unknown; {_depth(found, spared[0])}",
        )
    best = max(worth, key=lambda pair: _lead(found, pair))
    # The best of many leads is large by chance alone.
    sure = NormalDist().inv_cdf(1 - _CHANCE / len(worth))
    better = [pair for pair in worth if _lead(found, pair) > sure * _error(found, pair)]
    if not better:
        least = sure * _error(found, best)
        said = (
            f"the largest lead of a linear probe is {_led(found, best)}, and by chance alone it would be up to "
            f"{least:.3f} ({sure:.1f} standard errors); compared were the {len(worth)} of {len(allowed)} allowed pairs "
            f"that are not saturated, on {found.samples} samples"
        )
        if least > _COARSE:
            return [], Verdict("unknown", f"too few samples to tell whether deeper blocks are better: {said}")
        return [], Verdict(
            "no", f"no teacher separates the classes of the samples better than its student beyond chance; {said}"
        )
    # Leads within the standard error count as equal.
    step = max(_error(found, best), 1e-6)
    ranked = _apart(sorted(better, key=lambda pair: (-(_lead(found, pair) // step), pair.distance)), near)
    spared = _spared(found, ranked, better)
    led = "deeper blocks separate the classes of the samples better, a linear probe by "
    if not spared:
        return [], Verdict("no", f"{led}{_led(found, ranked[0])}, but {_needed(found, better)}")
    return [_recommend(found, pair) for pair in spared], Verdict(
        "yes",
        f"{led}{_led(found, spared[0])}, and earlier blocks are not similar to them yet; {_depth(found, spared[0])}",
    )


def _spared(found: Figures, ranked: Sequence[Pair], candidates: Sequence[Pair]) -> list[Pair]:
    """Return the pairs whose blocks between can be spared; if there is none, the one with the fewest, if it can."""
    spared = [pair for pair in ranked if not _is_needed(found, pair)]
    fewest = min(candidates, key=lambda pair: (pair.teacher.index - pair.student.index, pair.distance))
    return spared or ([] if _is_needed(found, fewest) else [fewest])


def _why_not(found: Figures, pair: Pair) -> str:
    """Return why the student has nothing to learn from the teacher, as a clause; empty where it has."""
    cka, centered = (_mean(found, name, pair) for name in ("cka", "centered_cosine"))
    if cka is None or centered is None:
        return "all compared tokens are equal, or there are too few, so nothing can be measured"
    if centered > SATURATED:
        return f"saturated already, with a centred cosine of {centered:.3f}, above {SATURATED}"
    if cka < STRANGERS:
        return f"they share next to nothing, with a CKA of {cka:.3f}"
    return ""


def _rise(found: Figures, pair: Pair) -> float | None:
    return found.rise_between(pair.student.index, pair.teacher.index)


def _is_needed(found: Figures, pair: Pair) -> bool:
    """Return whether the model cannot spare the blocks between, as far as that was measured."""
    rise = _rise(found, pair)
    return rise is not None and not rise <= SPARE  # nor where the loss is not a number


def _needed(found: Figures, pairs: Sequence[Pair]) -> str:
    measured = [(rise, pair) for pair in pairs if (rise := _rise(found, pair)) is not None]
    rise, least = min(measured, key=lambda one: one[0])
    return (
        "there is no depth to spare: LayerSync brings the blocks between student and teacher closer to the identity, "
        f"and without them the loss rises by {rise:.1%} ({least}), more than {SPARE:.0%}"
    )


def _depth(found: Figures, pair: Pair) -> str:
    rise = _rise(found, pair)
    if rise is None:
        return "whether there is depth to spare was not measured"
    return f"without the blocks between, the loss changes by {rise:+.1%}, so there is depth to spare"


def _mean(found: Figures, name: str, pair: Pair) -> float | None:
    return found.mean(name, pair.student.index, pair.teacher.index)


def _lead(found: Figures, pair: Pair) -> float:
    return _mean(found, "gap", pair) or 0.0


def _scores(found: Figures, pair: Pair) -> list[float]:
    return [
        sum(level[block.index] for level in found.probe) / len(found.probe) for block in (pair.student, pair.teacher)
    ]


def _error(found: Figures, pair: Pair) -> float:
    """Return the standard error of the lead, which several noise levels of the same samples make no smaller."""
    return _mean(found, "gap_error", pair) or 0.0


def _led(found: Figures, pair: Pair) -> str:
    return f"{_lead(found, pair):+.3f} ± {_error(found, pair):.3f} ({pair})"


def _apart(pairs: Sequence[Pair], near: int) -> list[Pair]:
    """Return pairs without those near an earlier one, since neighbours measure nearly the same."""
    chosen: list[Pair] = []
    for pair in pairs:
        if len(chosen) < _MOST and all(_are_apart(pair, other, near) for other in chosen):
            chosen.append(pair)
    return chosen


def _are_apart(one: Pair, other: Pair, near: int) -> bool:
    students, teachers = (one.student, other.student), (one.teacher, other.teacher)
    return all(abs(block.index - there.index) >= near for block, there in (students, teachers))


def _recommend(found: Figures, pair: Pair) -> Recommended:
    cka, cosine, centered = (_mean(found, name, pair) for name in ("cka", "cosine", "centered_cosine"))
    measured = f"measured: CKA {cka:.2f}, cosine {cosine:.2f}, centred cosine {centered:.2f}, so not saturated"
    if found.gap:
        student, teacher = _scores(found, pair)
        measured += (
            f"; a linear probe is right for {teacher:.2f} of the samples at the teacher, {student:.2f} at the student"
        )
    skip = found.skip[pair.student.index] if found.skip else None
    if skip is not None:
        measured += f"; without the student block the loss changes by {skip:+.3g}"
    rise, stop = _rise(found, pair), None
    if rise is not None:
        measured += f"; without the blocks between, the loss changes by {rise:+.1%}"
        stop = STOP if rise > IDLE else 1.0
    return Recommended(pair.student.index + 1, pair.teacher.index + 1, f"{measured}. {_prior(pair)}", stop)


def _prior(pair: Pair) -> str:
    student, teacher = pair.depths
    where = "the paper's best pairs are near 0.3 and 0.6 to 0.75, never in the last fifth"
    return f"prior (the paper's, not measured here): depths {student:.2f} and {teacher:.2f}; {where}"
