# Shapes: B batch, S tokens, D channels
"""A gradient of the loss that is differentiated again (``create_graph=True``) is right, not cut off in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from layersync_core.losses.alignment import similarity
from tests.models import assert_same_gradients, attached, gradients, mean_cosine, toy, toy_input, toy_states


def states(*shape: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return student.requires_grad_(), teacher


MASK = torch.tensor([[True, True, False], [True, False, False]])


@pytest.mark.parametrize(
    ("shape", "others"),
    [
        ((2, 3, 4), {}),
        ((2, 3, 2, 4), {}),
        ((2, 3, 4), {"mask": MASK}),
        ((2, 3, 4), {"sample_weight": torch.tensor([0.5, 2.0], dtype=torch.float64)}),
        ((2, 3, 4), {"mask": MASK, "sample_weight": torch.tensor([0.5, 0.0], dtype=torch.float64)}),
    ],
    ids=["plain", "frames", "mask", "weights", "mask and weights"],
)
def test_both_derivatives_are_those_of_finite_differences(shape: tuple[int, ...], others: dict[str, Any]) -> None:
    student, teacher = states(*shape)

    def loss(student: Tensor) -> Tensor:
        return similarity(student, teacher, **others).weighted

    assert torch.autograd.gradcheck(loss, (student,))
    assert torch.autograd.gradgradcheck(loss, (student,))


def test_the_first_gradient_is_the_same_with_and_without_a_graph() -> None:
    student, teacher = states(2, 33, 48, dtype=torch.float32)
    loss = similarity(student, teacher).weighted
    (plain,) = torch.autograd.grad(loss, student, retain_graph=True)
    (with_graph,) = torch.autograd.grad(loss, student, create_graph=True)
    assert with_graph.requires_grad
    torch.testing.assert_close(with_graph, plain, rtol=1e-5, atol=1e-8)


def test_zero_vectors_and_padding_that_is_nan_stay_out_of_both_derivatives() -> None:
    student, teacher = states(2, 3, 4)
    with torch.no_grad():
        student[0, 0] = 0
        student[1, 1:] = torch.nan
    (first,) = torch.autograd.grad(similarity(student, teacher, MASK).weighted, student, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), student)
    for gradient in (first, second):
        assert gradient.isfinite().all()
        assert not gradient[0, 0].any()
        assert not gradient[1, 1:].any()
        assert gradient[0, 1].any()


def test_the_gradient_keeps_the_students_dtype() -> None:
    student, teacher = states(1, 3, 4, dtype=torch.float32)
    half = student.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (first,) = torch.autograd.grad(similarity(half, teacher).weighted, half, create_graph=True)
    assert first.dtype == torch.bfloat16
    (second,) = torch.autograd.grad(first.float().square().sum(), half)
    assert second.any()


def test_a_gradient_penalty_on_the_total_loss_is_that_of_a_plain_loop() -> None:
    model, x = toy().double(), toy_input().double().requires_grad_()

    def penalty(loss: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        gradient.square().sum().backward()
        return gradients(model)

    student, _, teacher, _ = toy_states(model, x)
    expected = penalty(model(x).square().mean() - 0.5 * mean_cosine(student, teacher.detach()))
    with attached(model) as sync:
        assert_same_gradients(penalty(sync.apply(model(x).square().mean())), expected)
