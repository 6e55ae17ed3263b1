"""The paper's rules for choosing a pair: advice, never an error (arXiv 2510.12581, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from layersync_core.protocol import Block

_DEEP_ENOUGH_FOR_ADVICE = 12
_STUDENT_DEPTH, _TEACHER_DEPTH = 0.3, 0.65


def suggest_pair(blocks: Sequence[Block]) -> tuple[Block, Block]:
    """Return a student near 0.3 and a teacher near 0.65 of the depth.

    Where a model has stages, both come from the longest one; the teacher is never in the model's last fifth unless
    the model is too shallow to choose.

    Args:
        blocks: Every block of the model, at least one.

    Examples:
        >>> from layersync_core import get_adapter, load_tiny, suggest_pair
        >>> blocks = get_adapter("dit").list_blocks(load_tiny("dit").tiny_model())
        >>> student, teacher = suggest_pair(blocks)
        >>> print(student, "->", teacher)
        block 2 of 6 (transformer_blocks.1) -> block 4 of 6 (transformer_blocks.3)
    """
    runs = [list(run) for _, run in groupby(blocks, key=lambda block: (block.width, block.stage))]
    run = max(runs, key=len)
    # At least two positions, the student's before the teacher's.
    student = max(round(_STUDENT_DEPTH * len(run)), 1)
    teacher = max(round(_TEACHER_DEPTH * len(run)), student + 1)
    allowed = [block for block in run[:teacher] if not _in_last_fifth(block, len(blocks))]
    last = allowed[-1] if len(allowed) > student else run[min(teacher, len(run)) - 1]
    return run[student - 1], last


def pair_advice(student: Block, teacher: Block) -> list[str]:
    """Return what the paper advises against in a pair, one sentence each; nothing for models of few blocks."""
    depth = student.depth
    advice = []
    if teacher.index < student.index:
        advice.append(f"teacher {teacher} is shallower than student {student}; the paper takes a deeper teacher")
    if depth < _DEEP_ENOUGH_FOR_ADVICE or student.index == teacher.index:
        return advice
    if not advice and (teacher.index - student.index) * 10 < depth:
        advice.append(f"teacher {teacher} is close to student {student}; the paper keeps a real gap between them")
    if (student.index + 1) * 10 <= depth:
        advice.append(f"student {student} is among the very first blocks; the paper starts later")
    if _in_last_fifth(teacher, depth):
        advice.append(f"teacher {teacher} is in the last fifth of the model; the paper takes an earlier one")
    return advice


def _in_last_fifth(block: Block, depth: int) -> bool:
    return block.index >= depth - depth // 5
