"""Linear probes against a classifier that is fitted anew without each sample, for two classes and for more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from layersync_core import Block, Findings, Probe
from layersync_plugin_trainer import probing

COUNT = 60


def features(classes: int, clear: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (COUNT,), generator=torch.Generator().manual_seed(9))
    spread = torch.randn(COUNT, 6, generator=draw)
    spread[:, 0] += clear * labels
    return spread, labels * 3 + 1  # classes need not count from 0


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("clear", [0.0, 0.5, 3.0])
def test_a_score_is_that_of_leaving_each_sample_out(classes: int, clear: float) -> None:
    given, labels = features(classes, clear)
    standard, expected = StandardScaler().fit_transform(given.double().numpy()), labels.numpy()
    scores = []
    for strength in probing._STRENGTHS:
        right = []
        for left_out in range(COUNT):
            rest = np.arange(COUNT) != left_out
            line = RidgeClassifier(alpha=strength).fit(standard[rest], expected[rest])
            right.append(line.predict(standard[left_out : left_out + 1])[0] == expected[left_out])
        scores.append(np.mean(right))
    assert probing._right(given, labels).mean() == pytest.approx(max(scores))
    assert max(scores) < 1 or clear == 3


class Made(Probe):
    """A probe of three blocks that saw these features."""

    def __init__(self, pooled: list[torch.Tensor], labels: torch.Tensor) -> None:
        self._made = [(labels, pooled)]

    def labelled_samples(self) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
        return self._made


@pytest.mark.parametrize("classes", [2, 3])
def test_the_error_of_a_lead_is_that_of_paired_samples(classes: int) -> None:
    """Two blocks that are right on the same samples differ by little, however few of these there are."""
    dull, labels = features(classes, 0.3)
    clear, _ = features(classes, 1.5)
    found = Findings("Made", [Block(index, f"blocks.{index}") for index in range(3)], [0.5])
    found.cosine = [[[0.5] * 3] * 3]
    probing.score_probes(found, Made([dull, clear, clear + 1e-3 * dull], labels))
    right = [probing._right(one, labels) for one in (dull, clear)]
    lead = right[1] - right[0]
    assert found.gap[0][0][1] == pytest.approx(lead.mean(), abs=1e-6)
    assert found.gap[0][0][1] > 0.1
    error = found.gap_error[0][0][1]
    assert error == pytest.approx(((lead.var() + 4 / COUNT) / COUNT) ** 0.5, abs=1e-6)
    # Twins have the error of four made-up samples alone, and less than blocks that differ.
    assert found.gap_error[0][1][2] < 0.6 * error
    assert found.samples == COUNT
    assert found.chance == pytest.approx(float(labels.unique(return_counts=True)[1].max()) / COUNT)
