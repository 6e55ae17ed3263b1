"""The gradient of the mean cosine in a form that can be differentiated again, for ``create_graph=True``."""

# Shapes: B batch, S tokens, D channels

from __future__ import annotations

import math

import torch
from torch import Tensor


def gradient(student: Tensor, teacher: Tensor, real_BS: Tensor | None, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``scale · d cos / d student`` of each token, written out in plain operations.

    Args:
        student: (B, S, D) or (B, T, P, D), with the graph it came from.
        teacher: Of the student's shape, detached.
        real_BS: (B, S) or (B, T, P) bool, True for tokens that count; None where all do.
        scale: Gradient that arrives at the cosine of each token, a scalar or broadcast over (B, S).
        dtype: The dtype to compute in; the result has the student's.
    """
    wide_student, wide_teacher = student.to(dtype), teacher.to(dtype)
    if real_BS is not None:  # padding may hold NaN, which a factor of 0 would not remove
        wide_student, wide_teacher = (
            states.masked_fill(~real_BS.unsqueeze(-1), 0) for states in (wide_student, wide_teacher)
        )
    student_inverse_BS1, teacher_inverse_BS1 = map(_inverse_length, (wide_student, wide_teacher))
    cosine_BS1 = (wide_student * wide_teacher).sum(-1, keepdim=True) * student_inverse_BS1 * teacher_inverse_BS1
    # d cos / d s = t / (|s| |t|) - cos · s / |s|²
    direction = student_inverse_BS1 * teacher_inverse_BS1 * wide_teacher
    direction = direction - cosine_BS1 * student_inverse_BS1.square() * wide_student
    return (scale.unsqueeze(-1) * direction).to(student.dtype)


def _inverse_length(states: Tensor) -> Tensor:
    """Return 1 / length of each token with a last axis of 1: 0 for a zero vector, NaN for one that overflows."""
    limits = torch.finfo(states.dtype)
    square_BS1 = states.square().sum(-1, keepdim=True)
    zero_BS1 = square_BS1 < limits.tiny / limits.eps
    inverse_BS1 = square_BS1.masked_fill(zero_BS1, 1).rsqrt().masked_fill(zero_BS1, 0)
    return inverse_BS1.masked_fill(square_BS1 == torch.inf, math.nan)
