"""Linear probes against a classifier that is fitted anew without each sample, for two classes and for more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from layersync_core import Block, ConfigError, Findings, Probe
from layersync_core.suggest import probing
from tests.models import TOY, toy, toy_input

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
    assert float(probing.right_without(given, labels).mean()) == pytest.approx(max(scores))
    assert max(scores) < 1 or clear == 3


@pytest.mark.parametrize("classes", [2, 3])
def test_the_error_of_a_lead_is_that_of_paired_samples(classes: int) -> None:
    """Two blocks that are right on the same samples differ by little, however few of these there are."""
    dull, labels = features(classes, 0.3)
    clear, _ = features(classes, 1.5)
    found = Findings("Made", [Block(index, f"blocks.{index}") for index in range(3)], [0.5])
    found.cosine = [[[0.5] * 3] * 3]
    probing.score_probes(found, [(labels, [dull, clear, clear + 1e-3 * dull])])
    right = [probing.right_without(one, labels) for one in (dull, clear)]
    lead = (right[1] - right[0]).numpy()
    assert found.gap[0][0][1] == pytest.approx(lead.mean(), abs=1e-6)
    assert found.gap[0][0][1] > 0.1
    error = found.gap_error[0][0][1]
    assert error == pytest.approx(((lead.var() + 4 / COUNT) / COUNT) ** 0.5, abs=1e-6)
    # Twins have the error of four made-up samples alone, and less than blocks that differ.
    assert found.gap_error[0][1][2] < 0.6 * error
    assert found.samples == COUNT
    assert found.chance == pytest.approx(float(labels.unique(return_counts=True)[1].max()) / COUNT)


def test_classes_that_a_loop_of_ones_own_gives_are_scored() -> None:
    """Blocks from the second on see the class in the samples' own first channel, however it got there."""
    model, labels = toy(), torch.arange(4) % 2
    with Probe(model, TOY) as probe:
        for seed in range(16):
            x = 0.1 * toy_input(batch=4, seed=seed) + labels[:, None, None]
            with probe.at(0.5, labels=labels):
                model(x)
        found = probe.findings()
    assert found.samples == 64
    assert found.chance == 0.5
    assert found.probe[0][0] > 0.9
    assert found.content()["verdict"]["answer"] in ("yes", "no")


@pytest.mark.parametrize("labels", [None, torch.tensor([1, 1, 1, 1])], ids=["none", "one class"])
def test_a_level_without_classes_is_told(labels: torch.Tensor | None, caplog: pytest.LogCaptureFixture) -> None:
    model = toy()
    with Probe(model, TOY) as probe:
        with probe.at(0.2, labels=torch.arange(4)):
            model(toy_input(batch=4))
        with probe.at(0.8, labels=labels):
            model(toy_input(batch=4))
        found = probe.findings()
    assert found.probe == []
    assert caplog.messages == [
        "no linear probe is scored: at some noise level the samples have no classes, or one class alone"
    ]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.tensor([1, 2, 3]), "3 labels for a forward of 4 samples"),
        (torch.rand(4), "float32 of shape .4,."),
        (torch.ones(4, 1, dtype=torch.long), r"int64 of shape .4, 1."),
    ],
)
def test_labels_that_are_no_classes_of_the_samples(labels: torch.Tensor, said: str) -> None:
    model = toy()
    with Probe(model, TOY) as probe, pytest.raises(ConfigError, match=said), probe.at(labels=labels):
        model(toy_input(batch=4))


def test_a_channel_that_is_constant_up_to_rounding_is_left_out() -> None:
    given, labels = features(2, 3.0)
    constant = torch.full((COUNT, 1), 1e4 / 3, dtype=torch.float64)
    constant[::2] += 1e-12
    both = torch.cat([given.double(), constant], 1)
    assert torch.equal(probing.right_without(both, labels), probing.right_without(given, labels))
