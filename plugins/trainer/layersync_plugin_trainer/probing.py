"""Linear probes: how well the classes of samples can be predicted from each block's mean token."""

# Shapes: N samples, D channels, C classes (one column for two), A penalties

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from inspect import signature
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
    """Return (N,), 1 where a leave-one-out prediction is right and 0 where not, with the best of several penalties."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.preprocessing import StandardScaler

    # scikit-learn 1.5 renamed it.
    new = "store_cv_results" in signature(RidgeClassifierCV).parameters
    keep, kept = ("store_cv_results", "cv_results_") if new else ("store_cv_values", "cv_values_")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about badly conditioned features, which the larger penalties handle
        standard = StandardScaler().fit_transform(features_ND.double().numpy())
        ridge = RidgeClassifierCV(alphas=_STRENGTHS, scoring="accuracy", **{keep: True}).fit(standard, labels.numpy())
    said_NCA = getattr(ridge, kept).reshape(len(labels), -1, len(_STRENGTHS))
    # Its own score of two classes, which have one column, is always 1.
    guess_NA = (said_NCA[:, 0] > 0).astype(int) if said_NCA.shape[1] == 1 else said_NCA.argmax(1)
    right_NA: Floats = (ridge.classes_[guess_NA] == labels.numpy()[:, None]).astype(float)
    best: Floats = right_NA[:, right_NA.mean(0).argmax()]
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
