"""CREPA's score (arXiv 2506.09229, equation 6): each frame's tokens against its own and its neighbours' features."""

# Shapes: B batch, T frames, P tokens per frame of the states, N of the features, D channels of either

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from layersync_core import ConfigError

Projector = Callable[[Tensor], Tensor]


class Rule(NamedTuple):
    """The options of the score; see ``crepa_loss``."""

    adjacent_distance: int = 1
    tau: float = 1.0
    cumulative: bool = False
    normalize_by_frames: bool = True
    normalize_neighbour_sum: bool = False
    spatial_align: bool = True


class Scores(NamedTuple):
    """The scores of a batch.

    Args:
        alignment: (B,) Σ_f S_f of each sample, divided by T if the rule says so; differentiable.
        score: Mean S_f over samples and frames, detached.
        similarity: Mean c(f, f), a true cosine, detached.
    """

    alignment: Tensor
    score: Tensor
    similarity: Tensor


def crepa_loss(
    student_BTPD: Tensor,
    target_BTND: Tensor,
    *,
    projector: Projector | None = None,
    adjacent_distance: int = 1,
    tau: float = 1.0,
    cumulative: bool = False,
    normalize_by_frames: bool = True,
    normalize_neighbour_sum: bool = False,
    spatial_align: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return CREPA's unweighted loss and metrics to log.

    Args:
        student_BTPD: Hidden states by frame, (B, T, P, D), or (B, T, D) as one token per frame.
        target_BTND: Features, (B, T', N, D') or (B, T', D'); no gradient reaches them. The numbers of frames and tokens
            may differ from the states'.
        projector: Maps the states to the features' channels; None if these are the same.
        adjacent_distance: Distance of the neighbouring frames, at most T - 1; 0 takes no neighbours.
        tau: Temperature of the neighbours' weight exp(-distance/τ).
        cumulative: Take all distances from 1 on.
        normalize_by_frames: Divide the sum over frames by their number.
        normalize_neighbour_sum: Divide each frame's score by 1 + the sum of its neighbours' weights.
        spatial_align: If the numbers of tokens differ, interpolate both to the smaller; False compares the frames' mean
            tokens instead.

    Returns:
        The loss, an fp32 scalar; and ``crepa_alignment_score`` (the mean score per frame, which is minus the loss if
        that is divided by the frames; may exceed 1 unless neighbours are normalised) and ``crepa_similarity_self`` (the
        mean cosine of each frame with its own features), detached.

    Raises:
        ConfigError: The shapes do not fit.

    Examples:
        >>> import torch
        >>> from layersync_plugin_crepa import crepa_loss
        >>> frames = torch.eye(4).reshape(1, 2, 2, 4)  # (B, T, P, D): two frames of two tokens
        >>> loss, metrics = crepa_loss(frames, frames, adjacent_distance=0)
        >>> loss.item(), metrics["crepa_similarity_self"].item()
        (-1.0, 1.0)
    """
    rule = Rule(adjacent_distance, tau, cumulative, normalize_by_frames, normalize_neighbour_sum, spatial_align)
    scores = frame_scores(student_BTPD, target_BTND, rule, projector)
    told = {"crepa_alignment_score": scores.score, "crepa_similarity_self": scores.similarity}
    return -scores.alignment.mean(), told


def frame_scores(
    student_BTPD: Tensor,
    target_BTND: Tensor,
    rule: Rule,
    projector: Projector | None = None,
    mask_BTP: Tensor | None = None,
) -> Scores:
    """Return the score of each sample.

    Args:
        student_BTPD: As for ``crepa_loss``.
        target_BTND: As for ``crepa_loss``.
        rule: The options of the score.
        projector: As for ``crepa_loss``.
        mask_BTP: True for the tokens that count; for features with the same frames and tokens as the states.
    """
    student_BTPD, target_BTND = _by_frame(student_BTPD, "states"), _by_frame(target_BTND.detach(), "features")
    if len(student_BTPD) != len(target_BTND):
        raise ConfigError(
            f"the hidden states are of {len(student_BTPD)} samples and the features of {len(target_BTND)}: shapes "
            f"{tuple(student_BTPD.shape)} and {tuple(target_BTND.shape)}"
        )
    with torch.autocast(student_BTPD.device.type, enabled=False):
        frames = min(student_BTPD.shape[1], target_BTND.shape[1])
        student_BTPD, target_BTND = (some_frames(it, frames).float() for it in (student_BTPD, target_BTND))
        if projector is not None:
            student_BTPD = projector(student_BTPD)
        if student_BTPD.shape[-1] != target_BTND.shape[-1]:
            raise ConfigError(
                f"the hidden states have {student_BTPD.shape[-1]} channels and the features {target_BTND.shape[-1]}; "
                "a projector must make them the same"
            )
        if mask_BTP is None:
            student_BTPD, target_BTND = _same_tokens(student_BTPD, target_BTND, rule.spatial_align)
        u_BTPD, v_BTPD = F.normalize(student_BTPD, dim=-1), F.normalize(target_BTND, dim=-1)

        def cosine(own: slice, other: slice) -> Tensor:
            cosine_BTP = (u_BTPD[:, own] * v_BTPD[:, other]).sum(dim=-1)
            if mask_BTP is None:
                return cosine_BTP.mean(dim=-1)
            counted_BTP = (mask_BTP[:, own] & mask_BTP[:, other]).float()
            return (cosine_BTP * counted_BTP).sum(dim=-1) / counted_BTP.sum(dim=-1).clamp(min=1)

        self_BT = cosine(slice(None), slice(None))
        sum_BT, weights_T = self_BT, torch.ones(frames, device=self_BT.device)
        farthest = min(rule.adjacent_distance, frames - 1)
        for distance in range(1 if rule.cumulative else max(farthest, 1), farthest + 1):
            weight = math.exp(-distance / rule.tau)
            early, late = slice(None, -distance), slice(distance, None)
            for own, other, pad in ((early, late, (0, distance)), (late, early, (distance, 0))):
                sum_BT = sum_BT + weight * F.pad(cosine(own, other), pad)
                weights_T[own] += weight
        if rule.normalize_neighbour_sum:
            sum_BT = sum_BT / weights_T
        alignment_B = sum_BT.mean(dim=1) if rule.normalize_by_frames else sum_BT.sum(dim=1)
        return Scores(alignment_B, sum_BT.detach().mean(), self_BT.detach().mean())


def some_frames(states: Tensor, count: int) -> Tensor:
    """Return (B, count, …) of (B, T, …): evenly spread frames including the first and last, or all if T is smaller."""
    length = states.shape[1]
    if length <= count:
        return states
    # By slices: a list of indices would have to be copied to the device.
    return torch.stack([states[:, index * (length - 1) // max(count - 1, 1)] for index in range(count)], dim=1)


def _by_frame(states: Tensor, what: str) -> Tensor:
    if states.ndim not in (3, 4):
        raise ConfigError(
            f"the {what} have shape {tuple(states.shape)}; expected (batch, frames, tokens, channels) or (batch, "
            "frames, channels)"
        )
    return states.unsqueeze(2) if states.ndim == 3 else states


def _same_tokens(one: Tensor, other: Tensor, spatial_align: bool) -> tuple[Tensor, Tensor]:
    if not spatial_align and one.shape[2] != other.shape[2]:
        return one.mean(dim=2, keepdim=True), other.mean(dim=2, keepdim=True)
    return _interpolate(one, other.shape[2]), _interpolate(other, one.shape[2])


def _interpolate(states_BTPD: Tensor, tokens: int) -> Tensor:
    """Return states reduced to fewer tokens, unchanged if they have that few already."""
    batch, frames, own, channels = states_BTPD.shape
    if own <= tokens:
        return states_BTPD
    rows, target_rows = math.isqrt(own), math.isqrt(tokens)
    flat = states_BTPD.flatten(0, 1).transpose(1, 2)
    if rows * rows == own and target_rows * target_rows == tokens:
        square = flat.unflatten(2, (rows, rows))
        flat = F.interpolate(square, size=(target_rows, target_rows), mode="bilinear").flatten(2)
    else:
        flat = F.interpolate(flat, size=tokens, mode="linear")
    return flat.transpose(1, 2).reshape(batch, frames, tokens, channels)
