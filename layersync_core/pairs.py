"""Pairs of blocks and their weights, in the user's numbering."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from ctypes import c_float
from typing import Any, NamedTuple


class Pair(NamedTuple):
    """A student and a teacher as the user numbers them, with the weight of their term."""

    student: int
    teacher: int
    weight: float


def kept_in_single_precision(value: float) -> float:
    """Return a number, after refusing one that turns to 0 or infinity in single precision, as most losses are."""
    if value and math.isfinite(value) and c_float(value).value in (0.0, math.inf, -math.inf):
        raise ValueError("single precision takes it for 0 or infinity; give a number that it keeps, such as 0.1")
    return value


def check_weight(name: str, weight: float) -> None:
    """Raise ValueError unless a weight is finite and greater than 0 in single precision, as most losses are."""
    single = c_float(weight).value
    if not math.isfinite(single) or single <= 0:
        raise ValueError(
            f"{name} is {weight:g}; it must be finite and greater than 0 in single precision (the default is 0.2; "
            "layersync_enabled: false switches LayerSync off)"
        )


def check_pair(pair: Sequence[Any]) -> None:
    """Raise ValueError unless it is [student, teacher] or [student, teacher, weight]."""
    blocks, weight = pair[:2], pair[2:]
    whole = [re.fullmatch(r"\d+", str(block).strip()) for block in blocks]
    if len(blocks) != 2 or len(weight) > 1 or not all(whole) or any(isinstance(value, bool) for value in pair):
        raise ValueError(
            f"layersync_pairs has {pair!r}; each pair is [student, teacher] or [student, teacher, weight], "
            "blocks as whole numbers from 0"
        )
    try:
        value = float(weight[0]) if weight else 1.0
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"layersync_pairs has {pair!r}; its weight is not a number") from None
    check_weight(f"the weight of the pair {pair!r} in layersync_pairs", value)


def refuse_twice(pairs: Sequence[Sequence[Any]]) -> None:
    """Raise ValueError where two pairs have the same blocks."""
    seen: dict[tuple[int, int], Sequence[Any]] = {}
    for pair in pairs:
        blocks = max(int(pair[0]), 1), max(int(pair[1]), 1)  # 0 also means the first block
        if blocks in seen:
            raise ValueError(f"layersync_pairs has the pair {seen[blocks]!r} twice; give it once, with one weight")
        seen[blocks] = pair
