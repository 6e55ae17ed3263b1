"""Drawn data of the benchmark of the effect: the same everywhere, and what its classes say it is."""

from __future__ import annotations

import torch

from benchmarks.effect.drawn import LETTERS, _moved, bouncing, glyphs


def test_glyphs_are_repeatable_and_of_many_classes() -> None:
    (_, one, kinds), (_, two, _) = (glyphs((1, 16, 16), 500) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (500, 1, 16, 16)
    assert len(kinds.unique()) == len(LETTERS) == 62
    assert -1 <= one.min() < -0.99
    assert 0.5 < one.max() <= 1
    ink = (one > 0).float().mean((1, 2, 3))
    assert (ink > 0.01).all(), "no glyph is lost"
    border = torch.cat([one[..., 0, :], one[..., -1, :], one[..., 0], one[..., -1]], -1)
    assert (border > 0).float().mean() < 0.01, "and hardly one is cut"
    assert not torch.equal(one[0], one[62]), "one letter twice is drawn in two ways"


def test_a_classifier_can_tell_glyphs() -> None:
    _, images, kinds = glyphs((1, 16, 16), 3000)
    flat = images.flatten(1)
    means = torch.stack([flat[:2500][kinds[:2500] == kind].mean(0) for kind in range(len(LETTERS))])
    nearest = torch.cdist(flat[2500:], means).argmin(1)
    assert (nearest == kinds[2500:]).float().mean() > 0.3  # 1 / 62 by chance


def test_discs_stay_inside_and_move() -> None:
    (_, one, kinds), (_, two, _) = (bouncing((1, 8, 16, 16), 64) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == (64, 1, 8, 16, 16)
    ink = ((one + 1) / 2).sum((1, 3, 4))  # (N, T)
    discs = ink.mean(1) / (3.14159 * (0.13 * 16) ** 2)
    assert abs(discs[kinds == 0].mean() - 2) < 0.3
    assert abs(discs[kinds == 1].mean() - 3) < 0.3
    assert (one[:, :, 0] - one[:, :, -1]).abs().mean() > 0.1


def test_a_collision_keeps_momentum_and_energy_and_turns_discs_back() -> None:
    place = torch.tensor([[[0.4, 0.5], [0.6, 0.5], [0.9, 0.1]]])
    speed = torch.tensor([[[0.02, 0.0], [-0.01, 0.0], [0.0, 0.0]]])
    there = torch.tensor([[True, True, False]])
    _, after = _moved(place, speed.clone(), there, 0.13)
    torch.testing.assert_close(after.sum(1), speed.sum(1))
    torch.testing.assert_close(after.square().sum(), speed.square().sum())
    torch.testing.assert_close(after[0, :2], torch.tensor([[-0.01, 0.0], [0.02, 0.0]]))
    _, alone = _moved(place, speed.clone(), torch.tensor([[True, False, False]]), 0.13)
    torch.testing.assert_close(alone, speed, msg="a disc that is not there hits nobody")
