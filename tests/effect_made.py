"""Records of the studies of depth and of settings that nobody trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.effect.arms import CUT_OFF, DEEP, DEEP_ARMS, EVERY_ARM, PAIR, SETTING, VANILLA, between
from benchmarks.effect.depth import named, runs
from benchmarks.effect.results import Call, Depth, Mark, Real, Record, Results
from benchmarks.effect.studies import STUDIES
from benchmarks.effect.tasks import DEEP_TASKS, MAIN_SETTING, SETTINGS


def of_depth(
    arm: str, seed: int, loss: float, span_loss: float, task: str = "digits-12", change: float = 0.1, gap: float = 0.0
) -> Record:
    """Return a training whose loss is `span_loss` without the blocks between, and twice its loss without others."""
    blocks, pair = DEEP_TASKS[task].blocks, DEEP_ARMS[arm].pair_of(seed, DEEP_TASKS[task].blocks)
    absent = DEEP_ARMS[arm].absent
    count = blocks - (pair[1] - pair[0]) * absent
    without = {named(*run): 2 * loss for run in runs(count, None if absent else between(pair))}
    if not absent:
        without[named(*between(pair))] = span_loss
    mark = Mark(
        held_out=loss,
        probe={
            time: [0.5 + gap * (block >= pair[1]) for block in range(1, count + 1)] for time in ("0.2", "0.5", "0.8")
        },
        cka=[[1.0] * count] * count,
        frechet=1.0,
        accuracy=None,
        depth=Depth(whole=loss, without=without, change=[change] * count),
    )
    return Record(
        task=task,
        arm=arm,
        seed=seed,
        steps=DEEP.steps,
        pair=pair,
        weight=DEEP_ARMS[arm].weight,
        curve=[(step, loss) for step in range(100, 901, 100)],
        marks={DEEP.steps: mark},
        diverged=None,
        real=Real(accuracy=0.9, frechet=0.5),
        seconds=1.0,
        machine={},
    )


def of_setting(task: str, arm: str, seed: int, frechet: float, answer: Any = "no", held_out: float = 0.5) -> Record:
    """Return a training in which each block's probe is better than the last one's by 0.01."""
    described = SETTINGS[task]
    mark = Mark(
        held_out=held_out,
        probe={str(time): [0.3 + 0.01 * block for block in range(described.blocks)] for time in described.times},
        cka=[[1.0] * described.blocks] * described.blocks,
        frechet=frechet,
        accuracy=None,
    )
    return Record(
        task=task,
        arm=arm,
        seed=seed,
        steps=SETTING.steps,
        pair=EVERY_ARM[arm].pair_of(seed, described.blocks),
        weight=EVERY_ARM[arm].weight,
        curve=[(step, held_out) for step in range(100, 601, 100)],
        marks={SETTING.steps: mark},
        diverged=None,
        call=Call(compared=[], answer=answer, reason="as made", pair=None, stop=None)
        if arm == VANILLA and seed == 0
        else None,
        real=Real(accuracy=0.9, frechet=0.5),
        seconds=1.0,
        machine={},
    )


def lost(record: Record) -> Record:
    """Return a training that diverged."""
    return record.model_copy(update={"marks": {}, "curve": [], "diverged": 100})


def settings(folder: Path, ratios: dict[str, tuple[float, float]], answers: dict[str, str]) -> Results:
    """Return results in which each arm multiplies vanilla's distance by a ratio, nearly the same at every seed."""
    (folder / "settings").mkdir()
    results = STUDIES["settings"].results(folder)
    for task, (pair, cut) in ratios.items():
        for seed in range(5 if task == MAIN_SETTING else 3):
            base = 10.0 + seed
            results.add(of_setting(task, VANILLA, seed, base, answers[task]))
            for arm, ratio, loss in ((PAIR, pair, 0.51), (CUT_OFF, cut, 0.505)):
                results.add(of_setting(task, arm, seed, base * (ratio + 0.001 * seed), held_out=loss + 0.001 * seed))
    return results
