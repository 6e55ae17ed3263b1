from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn

from layersync_core import ConfigError
from layersync_plugin_trainer.feeding import Feed, check_forward
from layersync_plugin_trainer.layout import Layout, layout_of


@pytest.mark.parametrize(
    ("shape", "inputs", "hint", "expected"),
    [
        ((2, 3, 8, 6), {}, None, Layout("image", (3, 8, 6), "plain")),
        ((2, 4, 5, 8, 6), {}, None, Layout("video", (4, 5, 8, 6), "plain")),
        ((2, 4, 1, 8, 6), {}, None, Layout("image", (4, 8, 6), "frame")),
        ((2, 16, 12), {}, None, Layout("image", (3, 8, 8), "packed")),
        ((2, 16, 7), {}, None, Layout("image", (7, 4, 4), "tokens")),
        ((2, 15, 12), {}, None, Layout("audio", (12, 15), "tokens")),
        ((2, 16, 12), {}, "audio", Layout("audio", (12, 16), "tokens")),
        (
            (2, 24, 8),
            {"num_frames": 2, "height": 3, "width": 4},
            None,
            Layout("video", (8, 2, 3, 4), "tokens"),
        ),
        ((2, 12, 8), {"height": 3, "width": 4}, None, Layout("image", (8, 3, 4), "tokens")),
    ],
)
def test_layouts_are_told_and_inverted(shape, inputs, hint, expected):
    layout = layout_of(torch.zeros(shape), inputs, hint)
    assert layout == expected
    plain = torch.randn(2, *layout.shape)
    assert layout.to_model(plain).shape == shape
    assert torch.equal(layout.from_model(layout.to_model(plain)), plain)


def test_packing_is_that_of_flux():
    from diffusers import FluxPipeline

    plain = torch.randn(2, 4, 6, 6)
    theirs = FluxPipeline._pack_latents(plain, 2, 4, 6, 6)
    assert torch.equal(Layout("image", (4, 6, 6), "packed").to_model(plain), theirs)


@pytest.mark.parametrize(("shape", "hint"), [((2, 3), None), ((2, 3, 8, 8), "video"), ((2, 15, 8), "image")])
def test_a_sample_that_cannot_be_read_is_refused(shape, hint):
    with pytest.raises(ConfigError, match="cannot be read"):
        layout_of(torch.zeros(shape), {}, hint)


class Echo(nn.Module):
    """Returns what it was given, and remembers it."""

    def __init__(self, output=lambda sample: sample):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.output = output

    def forward(self, **inputs):
        self.inputs = inputs
        sample = next(iter(inputs.values()))
        return self.output(torch.stack(list(sample)) if isinstance(sample, list) else sample)


def tiny(example, **more) -> ModuleType:
    module = ModuleType("tiny")
    module.example_inputs = lambda model, batch_size: example(batch_size)
    for name, value in more.items():
        setattr(module, name, value)
    return module


def images(batch_size, **more):
    return {"x": torch.randn(batch_size, 3, 8, 8), "t": torch.rand(batch_size), **more}


def feed_once(module, model, size=3):
    feed = Feed(module, model)
    noisy = torch.randn(size, *feed.layout.shape)
    time = torch.linspace(0.25, 0.75, size)
    return feed, noisy, feed(model, noisy, time, torch.arange(size))


def test_sample_and_time_are_replaced_and_the_rest_is_the_same_for_every_sample():
    model = Echo()
    _, noisy, out = feed_once(tiny(lambda n: images(n, text=torch.randn(n, 5, 7), ids=torch.zeros(4, 3))), model)
    assert torch.equal(out, noisy)
    assert model.inputs["t"].tolist() == [0.25, 0.5, 0.75]
    text = model.inputs["text"]
    assert text.shape == (3, 5, 7)
    assert torch.equal(text[0], text[2])
    assert model.inputs["ids"].shape == (4, 3)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_conditions_do_not_depend_on_the_batch_size(batch):
    model = Echo()
    module = tiny(lambda n: images(n, text=torch.randn(n, 5, 7)))
    feed = Feed(module, model)
    feed(model, torch.zeros(batch, 3, 8, 8), torch.zeros(batch), torch.zeros(batch))
    seen = model.inputs["text"][0]
    feed(model, torch.zeros(17, 3, 8, 8), torch.zeros(17), torch.zeros(17))
    assert torch.equal(model.inputs["text"][16], seen)


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (torch.tensor([3, 900]), [250, 500, 750]),
        (torch.tensor([1, 0]), [250, 500, 750]),
        (torch.tensor([0.2, 900.0]), [250.0, 500.0, 750.0]),
        (torch.tensor([0.2, 0.9]), [0.25, 0.5, 0.75]),
    ],
)
def test_the_scale_of_time_is_told_from_the_example(example, expected):
    model = Echo()
    feed_once(tiny(lambda n: images(n) | {"t": example.repeat(n)[:n]}), model)
    assert model.inputs["t"].tolist() == expected
    assert model.inputs["t"].dtype == example.dtype


def test_time_of_each_token_is_expanded():
    model = Echo()
    feed_once(tiny(lambda n: images(n) | {"t": torch.rand(n, 6)}), model)
    assert model.inputs["t"].shape == (3, 6)
    assert model.inputs["t"][1].unique().tolist() == [0.5]


def test_labels_go_in_where_the_model_has_classes():
    model = Echo()
    module = tiny(lambda n: images(n, y=torch.zeros(n, dtype=torch.long)))
    feed_once(module, model)
    assert model.inputs["y"].tolist() == [0, 0, 0]  # the model does not say how many classes it knows
    model.num_classes = 10
    feed_once(module, model)
    assert model.inputs["y"].tolist() == [0, 1, 2]


def test_a_list_of_samples_is_one_batch():
    model = Echo(lambda sample: list(sample.unbind()))
    _, noisy, out = feed_once(
        tiny(lambda n: {"x": [torch.randn(4, 1, 8, 8) for _ in range(n)], "t": torch.rand(n)}), model
    )
    assert isinstance(model.inputs["x"], list)
    assert torch.equal(out, noisy)


@pytest.mark.parametrize(
    "output",
    [
        lambda sample: (sample, torch.zeros(3)),
        lambda sample: {"other": torch.zeros(2), "sample": sample},
        lambda sample: torch.cat([sample, torch.zeros_like(sample)], dim=1),
        lambda sample: type("Output", (), {"sample": sample})(),
    ],
)
def test_the_prediction_is_found(output):
    _, noisy, out = feed_once(tiny(images), Echo(output))
    assert torch.equal(out, noisy)


def test_a_model_that_predicts_nothing_of_that_shape_is_refused():
    model = Echo(lambda sample: sample[:, :, :4])
    with pytest.raises(ConfigError, match=r"returned \(2, 3, 4, 8\) for a sample of shape \(2, 3, 8, 8\)"):
        check_forward(Feed(tiny(images), model), model)


def test_an_unusual_name_is_found_by_size_and_none_is_an_error():
    model = Echo()
    module = tiny(lambda n: {"zt": torch.randn(n, 3, 8, 8), "t": torch.rand(n), "small": torch.randn(n, 2, 2)})
    assert Feed(module, model).sample_name == "zt"
    with pytest.raises(ConfigError, match="no noisy sample among the inputs t"):
        Feed(tiny(lambda n: {"t": torch.rand(n)}), model)
    with pytest.raises(ConfigError, match="no timestep among the inputs x"):
        Feed(tiny(lambda n: {"x": torch.randn(n, 3, 8, 8)}), model)


def test_a_tiny_module_may_override_everything():
    last = tiny(
        lambda n: {"x": torch.randn(n, 2, 8, 8, 3), "t": torch.rand(n)},  # channels last
        modality="video",
        sample_of=lambda inputs: inputs["x"].permute(0, 4, 1, 2, 3),
        with_sample=lambda inputs, sample: inputs | {"x": sample.permute(0, 2, 3, 4, 1)},
        prediction=lambda output, sample: output.permute(0, 4, 1, 2, 3),
    )
    model = Echo()
    feed, noisy, out = feed_once(last, model)
    assert feed.layout == Layout("video", (3, 2, 8, 8), "plain")
    assert model.inputs["x"].shape == (3, 2, 8, 8, 3)
    assert torch.equal(out, noisy)


def test_example_inputs_that_fail_are_the_users_error():
    def broken(n):
        raise KeyError("patch\nsize")

    with pytest.raises(ConfigError, match="example_inputs does not fit Echo") as caught:
        Feed(tiny(broken), Echo())
    assert "\n" not in str(caught.value)


def test_drawing_examples_leaves_the_random_generator_alone():
    model, module = Echo(), tiny(images)
    before = torch.get_rng_state()
    Feed(module, model)
    assert torch.equal(torch.get_rng_state(), before)
