"""Linear probes: how well the classes of samples can be predicted from each block's mean token."""

# Shapes: N samples, D channels, C classes, K singular values

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from layersync_core.suggest.findings import Findings

_STRENGTHS = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


def score_probes(found: Findings, levels: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> None:
    """Record the leave-one-out accuracy of a ridge classifier for each block; nothing without classes.

    Args:
        found: Its ``probe``, ``gap``, ``gap_error``, ``chance`` and ``samples`` are set.
        levels: For each noise level the classes (N,), at least two, and each block's mean tokens (N, D).
    """
    if not levels:
        return
    for labels_N, pooled in levels:
        right = [right_without(features_ND, labels_N) for features_ND in pooled]
        found.probe.append([round(float(hits_N.mean()), 6) for hits_N in right])
        places = range(len(right))
        found.gap.append([[_lead(found, i, j, right, _mean) for j in places] for i in places])
        found.gap_error.append([[_lead(found, i, j, right, _error) for j in places] for i in places])
    labels_N, _ = levels[0]
    found.samples = len(labels_N)
    found.chance = float(labels_N.unique(return_counts=True)[1].max()) / len(labels_N)


def right_without(features_ND: Tensor, labels_N: Tensor) -> Tensor:
    """Return (N,), 1 where a leave-one-out prediction is right and 0 where not, with the best of several penalties.

    A ridge classifier on standardised features. What a sample's prediction is without it follows from the fit to all
    (Allen, 1974).
    """
    features_ND = features_ND.double()
    mean_D, spread_D = features_ND.mean(0), features_ND.std(0, correction=0)
    # A channel that is constant up to rounding would be noise of unit size.
    spread_D = spread_D.where(spread_D > 1e-10 * mean_D.abs(), torch.inf)
    left_NK, sizes_K, _ = torch.linalg.svd((features_ND - mean_D) / spread_D, full_matrices=False)
    classes, place_N = labels_N.unique(return_inverse=True)
    target_NC = 2 * torch.nn.functional.one_hot(place_N, len(classes)).double() - 1
    hits = []
    for strength in _STRENGTHS:
        shrunk_NK = left_NK * (sizes_K**2 / (sizes_K**2 + strength))
        fitted_NC = shrunk_NK @ (left_NK.T @ target_NC) + target_NC.mean(0)
        own_N = (shrunk_NK * left_NK).sum(1) + 1 / len(target_NC)  # a sample's share in its own fit
        guess_NC = target_NC - (target_NC - fitted_NC) / (1 - own_N).clamp(min=1e-12)[:, None]
        hits.append((guess_NC.argmax(1) == place_N).double())
    best: Tensor = max(hits, key=_mean)
    return best


def _mean(values_N: Tensor) -> float:
    return float(values_N.mean())


def _error(differences_N: Tensor) -> float:
    """Return the standard error of a mean of paired differences, each -1, 0 or 1."""
    count = len(differences_N)
    # Two successes and two failures more, as Agresti and Coull (1998) add them: a few samples that agree prove nothing.
    return float(((differences_N.var(correction=0) + 4 / count) / count) ** 0.5)


def _lead(
    found: Findings, student: int, teacher: int, right: Sequence[Tensor], of: Callable[[Tensor], float]
) -> float | None:
    if found.cosine[0][student][teacher] is None:  # they cannot be paired
        return None
    return round(of(right[teacher] - right[student]), 6)
