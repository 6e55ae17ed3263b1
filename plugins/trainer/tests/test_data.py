from __future__ import annotations

import pytest
import torch

from layersync_plugin_trainer import data


@pytest.mark.parametrize(
    ("modality", "shape"),
    [("image", (1, 8, 8)), ("image", (4, 16, 12)), ("video", (3, 5, 16, 12)), ("audio", (6, 32)), ("audio", (1, 9))],
)
def test_samples_have_the_shape_and_range_asked_for(modality, shape):
    loaded = data.load(modality, shape)
    for samples, labels in ((loaded.samples, loaded.labels), (loaded.held_out, loaded.held_out_labels)):
        assert samples.shape == (len(labels), *shape)
        assert samples.dtype == torch.float32
        assert samples.min() >= -1.01
        assert samples.max() <= 1.01
        assert samples.std() > 0.1


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    loaded = data.load("image", (1, 8, 8))
    real = {image.tobytes() for image in load_digits().images}
    back = ((loaded.samples[:, 0] + 1) * 8).double().numpy()
    assert all(image.tobytes() in real for image in back)
    assert len(loaded.samples) + len(loaded.held_out) == 1797


def test_held_out_samples_are_not_trained_on():
    loaded = data.load("video", (1, 3, 8, 8))
    trained = {sample.numpy().tobytes() for sample in loaded.samples}
    assert not any(sample.numpy().tobytes() in trained for sample in loaded.held_out)


def test_shapes_move():
    clips = data.load("video", (1, 4, 16, 16)).samples
    assert ((clips[:, :, 0] - clips[:, :, -1]).abs().amax(dim=(1, 2, 3)) > 0.2).float().mean() > 0.9


def test_classes_can_be_limited():
    assert int(data.load("image", (1, 8, 8), classes=3).labels.max()) == 2


def test_the_order_covers_every_sample_in_each_pass_and_needs_no_state():
    stream = data.positions(5, 0, 30, 10)
    for start in (0, 10, 20):
        assert sorted(stream[start : start + 10].tolist()) == list(range(10))
    assert stream[:10].tolist() != stream[10:20].tolist()
    assert data.positions(5, 7, 9, 10).tolist() == stream[7:16].tolist()
    assert data.positions(6, 0, 30, 10).tolist() != stream.tolist()
    assert data.positions(5, 3, 64, 10).shape == (64,)
