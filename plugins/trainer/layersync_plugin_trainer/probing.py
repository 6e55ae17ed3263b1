"""Linear probes: how well the classes of samples can be predicted from each block's mean token."""

from __future__ import annotations

import warnings

from torch import Tensor

from layersync_core import Findings, Probe

_STRENGTHS = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)


def score_probes(found: Findings, probe: Probe) -> None:
    """Record the leave-one-out accuracy of a ridge classifier for each block; nothing without classes.

    Args:
        found: Its ``probe``, ``gap``, ``chance`` and ``samples`` are set.
        probe: The probe that measured the samples, and knows their classes if anyone does.
    """
    rounds = probe.labelled_samples()
    if not rounds or any(len(labels.unique()) < 2 for labels, _ in rounds):
        return
    for labels, pooled in rounds:
        scores = [_score(features, labels) for features in pooled]
        found.probe.append(scores)
        found.gap.append([[_difference(found, i, j, scores) for j in range(len(scores))] for i in range(len(scores))])
    labels, _ = rounds[0]
    found.samples = len(labels)
    found.chance = float(labels.bincount().max()) / len(labels)


def _score(features_ND: Tensor, labels: Tensor) -> float:
    """Return the accuracy of leave-one-out predictions with the best of several penalties."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about badly conditioned features, which the larger penalties handle
        standard = StandardScaler().fit_transform(features_ND.double().numpy())
        ridge = RidgeClassifierCV(alphas=_STRENGTHS, scoring="accuracy").fit(standard, labels.numpy())
    return round(float(ridge.best_score_), 6)


def _difference(found: Findings, student: int, teacher: int, scores: list[float]) -> float | None:
    if found.cosine[0][student][teacher] is None:  # they cannot be paired
        return None
    return round(scores[teacher] - scores[student], 6)
