# Shapes: B batch, T frames, P tokens per frame of the states, N of the features, D channels
"""CREPA's score against numbers worked out by hand, and against a plain double loop over frames."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layersync_core import ConfigError
from layersync_plugin_crepa import crepa_loss

E = math.exp(-1)


def same_everywhere(frames: int = 4, tokens: int = 3) -> Tensor:
    """Return (2, T, P, 8) with the same tokens in every frame."""
    return torch.randn(2, 1, tokens, 8, generator=torch.Generator().manual_seed(0)).expand(2, frames, tokens, 8)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def score(*args: Any, **more: Any) -> float:
    loss, metrics = crepa_loss(*args, **more)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    frames = min(it.shape[1] for it in args[:2]) if more.get("normalize_by_frames") is False else 1
    torch.testing.assert_close(metrics["crepa_alignment_score"], -loss.detach() / frames)
    assert not any(value.requires_grad for value in metrics.values())
    return -float(loss.detach())


def by_loop(student_BTPD: Tensor, target_BTPD: Tensor, weights: dict[int, float], normalise: bool) -> float:
    """Return the mean of S_f over samples and frames, written as in the formula."""
    batch, frames = student_BTPD.shape[:2]
    total = 0.0
    for sample in range(batch):
        for frame in range(frames):
            own, used = 0.0, 0.0
            for distance, weight in {0: 1.0, **weights}.items():
                for other in {frame - distance, frame + distance} & set(range(frames)):
                    cosine = F.cosine_similarity(student_BTPD[sample, frame], target_BTPD[sample, other], dim=-1).mean()
                    own, used = own + weight * float(cosine), used + weight
            total += own / used if normalise else own
    return total / (batch * frames)


# Identical unit features, 4 frames, distance 1, τ 1: 6 neighbours, each e⁻¹, in 4 frames.
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, 1 + 1.5 * E),
        ({"normalize_neighbour_sum": True}, 1),
        ({"normalize_by_frames": False}, 4 + 6 * E),
        ({"tau": 2.0}, 1 + 1.5 * math.exp(-0.5)),
        ({"adjacent_distance": 0}, 1),
        ({"adjacent_distance": 0, "cumulative": True, "normalize_neighbour_sum": True}, 1),
        ({"adjacent_distance": 2}, 1 + math.exp(-2)),
        ({"adjacent_distance": 9}, 1 + 0.5 * math.exp(-3)),  # limited by the number of frames
        ({"adjacent_distance": 2, "cumulative": True}, 1 + 1.5 * E + math.exp(-2)),
        ({"adjacent_distance": 2, "cumulative": True, "normalize_neighbour_sum": True}, 1),
        ({"spatial_align": False}, 1 + 1.5 * E),
    ],
)
def test_identical_features(more: dict[str, Any], expected: float) -> None:
    states = same_everywhere()
    assert score(states, states, **more) == pytest.approx(expected, rel=1e-5)
    assert float(crepa_loss(states, states, **more)[1]["crepa_similarity_self"]) == pytest.approx(1, rel=1e-5)
    assert score(states, -5 * states, **more) == pytest.approx(-expected, rel=1e-5)


@pytest.mark.parametrize(("frames", "expected"), [(1, 1.0), (2, 1 + E)])
@pytest.mark.parametrize("distance", [1, 3])
@pytest.mark.parametrize("cumulative", [False, True])
def test_clips_of_one_and_two_frames(frames: int, expected: float, distance: int, cumulative: bool) -> None:
    states = same_everywhere(frames)
    found = score(states, states, adjacent_distance=distance, cumulative=cumulative)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("cumulative", [False, True])
@pytest.mark.parametrize("distance", [1, 2, 4])
def test_random_features(distance: int, cumulative: bool, normalise: bool) -> None:
    student, target = random(2, 5, 6, 8), random(2, 5, 6, 8, seed=1)
    weights = {it: math.exp(-it / 0.7) for it in (range(1, distance + 1) if cumulative else [distance])}
    found = score(
        student,
        target,
        adjacent_distance=distance,
        tau=0.7,
        cumulative=cumulative,
        normalize_neighbour_sum=normalise,
    )
    assert found == pytest.approx(by_loop(student, target, weights, normalise), rel=1e-4)
    similarity = crepa_loss(student, target)[1]["crepa_similarity_self"]
    assert float(similarity) == pytest.approx(by_loop(student, target, {}, False), rel=1e-4)


def test_three_axes_are_one_token_a_frame() -> None:
    student, target = random(2, 5, 8), random(2, 5, 8, seed=1)
    expected = score(student[:, :, None], target[:, :, None])
    assert score(student, target) == score(student[:, :, None], target) == expected
    with pytest.raises(ConfigError, match=r"the states have shape \(2, 5\)"):
        crepa_loss(student[..., 0], target)


def test_the_longer_clip_loses_frames() -> None:
    student, target = random(1, 3, 4, 8), random(1, 5, 4, 8, seed=1)
    assert score(student, target) == score(student, target[:, [0, 2, 4]])
    assert score(target, student) == score(target[:, [0, 2, 4]], student)
    assert score(student, target[:, :1]) == score(student[:, :1], target[:, :1])


def test_square_tokens_are_interpolated_as_images() -> None:
    student, target = random(2, 3, 4, 8), random(2, 3, 16, 8, seed=1)
    images = target.reshape(6, 4, 4, 8).permute(0, 3, 1, 2)
    smaller = F.interpolate(images, size=(2, 2), mode="bilinear").permute(0, 2, 3, 1).reshape(2, 3, 4, 8)
    assert score(student, target) == pytest.approx(score(student, smaller), rel=1e-5)
    assert score(target, student) == pytest.approx(score(smaller, student), rel=1e-5)


def test_other_tokens_are_interpolated_as_a_sequence() -> None:
    student, target = random(2, 3, 6, 8), random(2, 3, 12, 8, seed=1)
    rows = F.interpolate(target.reshape(6, 12, 8).transpose(1, 2), size=6, mode="linear")
    smaller = rows.transpose(1, 2).reshape(2, 3, 6, 8)
    assert score(student, target) == pytest.approx(score(student, smaller), rel=1e-5)


def test_without_spatial_alignment_the_mean_tokens_are_compared() -> None:
    student, target = random(2, 3, 6, 8), random(2, 3, 16, 8, seed=1)
    expected = score(student.mean(2), target.mean(2))
    assert score(student, target, spatial_align=False) == pytest.approx(expected, rel=1e-5)


def test_without_spatial_alignment_as_many_tokens_are_compared_one_by_one() -> None:
    student, target = random(2, 3, 6, 8), random(2, 3, 6, 8, seed=1)
    expected = by_loop(student, target, {1: E}, False)
    assert score(student, target, spatial_align=False) == pytest.approx(expected, rel=1e-4)
    assert score(student, target, spatial_align=False) != pytest.approx(score(student.mean(2), target.mean(2)))


def test_the_student_and_the_projector_get_gradients_and_the_target_none() -> None:
    projector = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 6))
    student = random(2, 4, 4, 8).bfloat16().requires_grad_()
    target = random(2, 4, 9, 6, seed=1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = crepa_loss(student, target, projector=projector)
    assert loss.dtype == torch.float32
    loss.backward()
    assert target.grad is None
    assert all(it.grad is not None and it.grad.any() for it in (student, *projector.parameters()))
    expected = score(projector(student.detach().float()), target)
    assert -float(loss.detach()) == pytest.approx(expected, rel=1e-5), "in full precision, autocast or not"


@pytest.mark.parametrize(
    ("target", "said"), [(random(3, 4, 4, 8), "2 samples and the features of 3"), (random(2, 4, 4, 6), "8 channels")]
)
def test_shapes_that_do_not_fit(target: Tensor, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        crepa_loss(random(2, 4, 4, 8), target)
