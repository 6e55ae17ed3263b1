"""The benchmark of the effect trains and measures what it says; what it finds, no test judges."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch

from benchmarks.effect import training
from benchmarks.effect.arms import FULL, PAPER, QUICK, Job, Scale
from benchmarks.effect.measures import Exam, frechet_distance, linear_cka
from benchmarks.effect.results import Mark, Record
from benchmarks.effect.tasks import TASKS
from layersync_core import LayerSyncWarning

TINY = dataclasses.replace(QUICK, short=1, every=1)
STEADY = dataclasses.replace(TINY, data=400)


# Measures.


def test_the_frechet_distance_is_the_formula_with_a_matrix_root() -> None:
    from scipy.linalg import sqrtm

    draw = np.random.default_rng(0)
    one, two = draw.normal(size=(200, 5)) @ draw.normal(size=(5, 5)), draw.normal(1, 2, size=(300, 5))
    covs = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    expected = np.square(one.mean(0) - two.mean(0)).sum() + np.trace(covs[0] + covs[1] - 2 * sqrtm(covs[0] @ covs[1]))
    assert frechet_distance(one, two) == pytest.approx(expected.real)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(np.pad(one, ((0, 0), (0, 2))), np.pad(two, ((0, 0), (0, 2)))) == pytest.approx(
        expected.real
    ), "features that are always 0 change nothing"


def test_cka_sees_neither_rotation_nor_scale_and_is_the_kernel_formula() -> None:
    one, two = torch.randn(50, 6), torch.randn(50, 9)
    rotation = torch.linalg.qr(torch.randn(6, 6))[0]
    assert linear_cka(one, 3 * one @ rotation + 5) == pytest.approx(1, abs=1e-6)
    centre = torch.eye(50) - 1 / 50
    kernels = [(centre @ value @ value.T @ centre).double() for value in (one, two)]
    expected = (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())
    assert linear_cka(one, two) == pytest.approx(float(expected), rel=1e-4)


@pytest.fixture(name="exam")
def _exam() -> Exam:
    training.exam_of.cache_clear()
    return training.exam_of("digits", TINY, torch.device("cpu"))


def test_the_model_is_not_told_the_class_that_a_probe_looks_for(exam: Exam) -> None:
    model = exam.task.tiny_model()
    samples, labels = exam.data.samples[:8], exam.data.labels[:8]
    one = exam._states(model, samples, labels, 0.2, "probe")
    other = exam._states(model, samples, labels.roll(1), 0.2, "probe")
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_the_judge_knows_digits(exam: Exam) -> None:
    whole = Exam(exam.task, exam.task.data(), exam.adapter, exam.feed, FULL, exam.device)
    judge = whole.judge
    assert judge.accuracy_on_real > 0.9
    assert judge.distance(torch.randn_like(whole.data.held_out)) > 10 * judge.distance_of_real


def test_held_out_digits_are_397_of_1797() -> None:
    data = TASKS["digits"].data()
    assert (len(data.samples), len(data.held_out)) == (1400, 397)


# Trainings.


@pytest.fixture
def curves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of a short training: probes and samples."""
    mark = Mark.model_construct()
    monkeypatch.setattr(Exam, "examine", lambda *_: mark)


def run(arm: str, steps: int = 1, seed: int = 0, task: str = "digits", scale: Scale = TINY) -> Record:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerSyncWarning)  # of pairs that the paper advises against
        return training.train(Job(task, arm, seed, steps), scale)


def losses_of(record: Record) -> list[float]:
    return [loss for _, loss in record.curve]


def test_a_training_is_repeatable_and_seeds_differ() -> None:
    one, again, other = run("vanilla"), run("vanilla"), run("vanilla", seed=1)
    assert one.model_copy(update={"seconds": again.seconds}) == again
    assert losses_of(one) != losses_of(other)


@pytest.mark.usefixtures("curves_alone")
def test_arms_share_weights_data_and_noise_and_differ_by_the_term() -> None:
    vanilla, itself, pair, other = run("vanilla"), run("self"), run("pair"), run("swapped")
    assert losses_of(itself) == pytest.approx(losses_of(vanilla), abs=1e-6), "a block with itself gives no gradient"
    assert abs(losses_of(pair)[0] - losses_of(vanilla)[0]) > 1e-6
    assert abs(losses_of(pair)[0] - losses_of(other)[0]) > 1e-6


@pytest.mark.usefixtures("curves_alone")
def test_the_cut_off_is_at_a_third() -> None:
    # One step without the term moves the average of the weights little: a loss of few samples may round to the same.
    pair, cut = (losses_of(run(arm, 6, scale=STEADY)) for arm in ("pair", "cut-off"))
    assert pair[:2] == cut[:2]
    assert pair[2] != cut[2]


def test_without_stop_gradient_both_blocks_are_pulled(exam: Exam) -> None:
    model = exam.task.tiny_model()
    sync = training.BothWays(model, exam.adapter, PAPER, 0.3)
    batch = training.Batches(exam.data, 0, 4).whole(0)
    kept = {}
    blocks = [model.get_submodule(f"transformer_blocks.{block - 1}") for block in PAPER]
    hooks = [
        block.register_forward_hook(lambda m, a, out, n=n: kept.__setitem__(n, out)) for n, block in enumerate(blocks)
    ]
    exam.feed(model, batch.noisy, batch.time, batch.labels)
    main = model.proj_out_2.weight.square().sum()
    total = sync.apply(main, step=0)
    expected = main - 0.3 * torch.cosine_similarity(kept[0], kept[1], dim=-1).mean()
    assert torch.allclose(total, expected)
    weights = [block.ff.net[2].weight for block in blocks]
    ours = torch.autograd.grad(total, weights, retain_graph=True)
    theirs = torch.autograd.grad(expected, weights)
    for mine, plain in zip(ours, theirs, strict=True):
        assert plain.abs().max() > 0
        assert torch.allclose(mine, plain)
    sync.remove()
    for hook in hooks:
        hook.remove()


def test_a_loss_that_is_no_number_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LEARNING_RATE", 1e30)
    found = run("vanilla", 3)
    assert found.diverged is not None
    assert len(found.curve) == found.diverged - 1
    assert np.isfinite(losses_of(found)).all()
    assert max(found.marks, default=0) < found.diverged


@pytest.mark.parametrize("task", ["faces", "shapes"])
def test_the_other_tasks(task: str) -> None:
    record = run("pair", task=task)
    mark = record.marks[1]
    assert [len(accuracies) for accuracies in mark.probe.values()] == [12, 12]
    assert len(mark.cka) == 12
    assert (mark.accuracy is None) == (task == "shapes")
