"""Linear probes: how well the classes of samples can be predicted from each block's mean token."""

# Shapes: N samples, D channels, C classes, K singular values

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from layersync_core import Findings, Probe

Floats = NDArray[np.float64]
_STRENGTHS = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


def score_probes(found: Findings, probe: Probe) -> None:
    """Record the leave-one-out accuracy of a ridge classifier for each block; nothing without classes.

    Args:
        found: Its ``probe``, ``gap``, ``gap_error``, ``chance`` and ``samples`` are set.
        probe: The probe that measured the samples, and knows their classes if anyone does.
    """
    rounds = probe.labelled_samples()
    if not rounds or any(len(labels.unique()) < 2 for labels, _ in rounds):
        return
    for labels, pooled in rounds:
        right = [_right(features, labels) for features in pooled]
        found.probe.append([round(float(hits.mean()), 6) for hits in right])
        places = range(len(right))
        found.gap.append([[_lead(found, i, j, right, np.mean) for j in places] for i in places])
        found.gap_error.append([[_lead(found, i, j, right, _error) for j in places] for i in places])
    labels, _ = rounds[0]
    found.samples = len(labels)
    found.chance = float(labels.unique(return_counts=True)[1].max()) / len(labels)


def _right(features_ND: Tensor, labels: Tensor) -> Floats:
    """Return (N,), 1 where a leave-one-out prediction is right and 0 where not, with the best of several penalties.

    A ridge classifier on standardised features, as scikit-learn's, whose own leave-one-out scores are always 1 for two
    classes. What a sample's prediction is without it follows from the fit to all (Allen, 1974).
    """
    from sklearn.preprocessing import StandardScaler

    standard_ND = StandardScaler().fit_transform(features_ND.double().numpy())
    classes, place_N = np.unique(labels.numpy(), return_inverse=True)
    target_NC = 2.0 * np.eye(len(classes))[place_N] - 1
    left_NK, sizes_K, _ = np.linalg.svd(standard_ND, full_matrices=False)
    hits = []
    for strength in _STRENGTHS:
        shrunk_NK = left_NK * (sizes_K**2 / (sizes_K**2 + strength))
        fitted_NC = shrunk_NK @ (left_NK.T @ target_NC) + target_NC.mean(0)
        own_N = (shrunk_NK * left_NK).sum(1) + 1 / len(target_NC)  # a sample's share in its own fit
        guess_NC = target_NC - (target_NC - fitted_NC) / np.clip(1 - own_N, 1e-12, None)[:, None]
        hits.append((guess_NC.argmax(1) == place_N).astype(float))
    best: Floats = max(hits, key=np.mean)
    return best


def _error(differences: Floats) -> float:
    """Return the standard error of a mean of paired differences, each -1, 0 or 1."""
    count = len(differences)
    # Two successes and two failures more, as Agresti and Coull (1998) add them: a few samples that agree prove nothing.
    return float(((np.var(differences) + 4 / count) / count) ** 0.5)


def _lead(
    found: Findings, student: int, teacher: int, right: Sequence[Floats], of: Callable[[Floats], Any]
) -> float | None:
    if found.cosine[0][student][teacher] is None:  # they cannot be paired
        return None
    return round(float(of(right[teacher] - right[student])), 6)
