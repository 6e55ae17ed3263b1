from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import nn

from layersync_core import ConfigError, list_families, load_tiny
from layersync_plugin_trainer import digits_dit
from layersync_plugin_trainer.feeding import Feed, check_forward, declared
from layersync_plugin_trainer.layout import layout_of


def tiny(example=lambda batch_size: images(batch_size), **declarations) -> ModuleType:
    """A tiny module for ``Echo``: images (B, 3, 8, 8) called x, and a timestep called t."""
    module = ModuleType("tiny")
    vars(module).update(modality="image", sample="x", axes="BCHW", timestep="t", tiny_model=lambda: Echo())
    vars(module).update(example_inputs=lambda model, batch_size: example(batch_size), **declarations)
    return module


def images(batch_size, **more):
    return {"x": torch.randn(batch_size, 3, 8, 8), "t": torch.rand(batch_size), **more}


@pytest.mark.parametrize(
    ("modality", "axes", "grid", "shape", "plain"),
    [
        ("image", "BCHW", None, (2, 3, 8, 6), (3, 8, 6)),
        ("image", "BHWC", None, (2, 8, 6, 3), (3, 8, 6)),
        ("video", "BCTHW", None, (2, 4, 5, 8, 6), (4, 5, 8, 6)),
        ("video", "BTCHW", None, (2, 5, 4, 8, 6), (4, 5, 8, 6)),
        ("image", "BCTHW", None, (2, 4, 1, 8, 6), (4, 8, 6)),
        ("image", "CTHW", None, (2, 4, 1, 8, 6), (4, 8, 6)),
        ("image", "B(HW)(C22)", (4, 4), (2, 16, 12), (3, 8, 8)),
        ("image", "B(HW)(C22)", (3, 4), (2, 12, 8), (2, 6, 8)),
        ("image", "B(HW)C", (4, 4), (2, 16, 12), (12, 4, 4)),
        ("image", "B(HW)C", (3, 4), (2, 12, 8), (8, 3, 4)),
        ("video", "B(THW)C", (2, 3, 4), (2, 24, 8), (8, 2, 3, 4)),
        ("audio", "BLC", None, (2, 16, 12), (12, 16)),
        ("audio", "BCL", None, (2, 12, 16), (12, 16)),
    ],
)
def test_layouts_are_read_and_inverted(modality, axes, grid, shape, plain):
    more = {"grid": grid} if grid else {}
    layout = layout_of(tiny(modality=modality, axes=axes, **more), torch.zeros(shape))
    assert (layout.modality, layout.shape) == (modality, plain)
    drawn = torch.randn(2, *plain)
    assert layout.to_model(drawn).shape == shape
    assert torch.equal(layout.from_model(layout.to_model(drawn)), drawn)


def test_packing_is_that_of_flux():
    from diffusers import FluxPipeline

    plain = torch.randn(2, 4, 6, 6)
    theirs = FluxPipeline._pack_latents(plain, 2, 4, 6, 6)
    layout = layout_of(tiny(axes="B(HW)(C22)", grid=(3, 3)), theirs)
    assert torch.equal(layout.to_model(plain), theirs)


def test_the_tokens_of_a_clip_are_its_frames_row_by_row():
    plain = torch.randn(2, 5, 2, 3, 4)
    layout = layout_of(tiny(modality="video", axes="B(THW)C", grid=(2, 3, 4)), torch.zeros(2, 24, 5))
    assert torch.equal(layout.to_model(plain), plain.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(
    ("modality", "axes", "grid", "shape"),
    [
        ("image", "BCHW", (), (2, 3)),
        ("video", "BCHW", (), (2, 3, 8, 8)),
        ("image", "BCTHW", (), (2, 3, 2, 8, 8)),
        ("image", "BCHW", (), (2, 3, 2, 8, 8)),
        ("image", "BCHWC", (), (2, 3, 8, 8, 3)),
        ("image", "BCHX", (), (2, 3, 8, 8)),
        ("image", "B(HW)C", (4, 4), (2, 15, 8)),
        ("image", "B(HW)C", (4,), (2, 16, 8)),
        ("image", "B(HW)(C22)", (4, 4), (2, 16, 7)),
        ("picture", "BCHW", (), (2, 3, 8, 8)),
    ],
)
def test_a_sample_that_is_not_what_was_declared_is_refused(modality, axes, grid, shape):
    with pytest.raises(ConfigError, match=f"tiny declares its sample as {modality} with axes ") as caught:
        layout_of(tiny(modality=modality, axes=axes, grid=grid), torch.zeros(shape))
    assert str(shape) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_time_for_a_whole_batch_is_refused_where_samples_have_their_own():
    feed = Feed(tiny(lambda count: {"x": torch.randn(count, 3, 8, 8), "t": torch.rand(1)}), Echo())
    feed.check_batch(1)
    with pytest.raises(
        ConfigError, match="train_batch_size is 2, but Echo takes one timestep for a whole batch; give 1"
    ):
        feed.check_batch(2)
    Feed(tiny(), Echo()).check_batch(2)


PLAIN = {
    "ace_step": ("audio", (8, 18)),
    "allegro": ("video", (4, 3, 4, 8)),
    "anyflow": ("video", (4, 3, 4, 8)),
    "chronoedit": ("video", (4, 2, 4, 8)),
    "cogvideox": ("video", (4, 4, 8, 6)),
    "consisid": ("video", (4, 3, 4, 8)),
    "cosmos": ("video", (4, 3, 8, 6)),
    "dit": ("image", (1, 8, 8)),
    "easyanimate": ("video", (4, 3, 4, 8)),
    "hunyuan_video": ("video", (4, 3, 4, 6)),
    "kandinsky5_video": ("video", (4, 3, 4, 6)),
    "kandinsky6": ("video", (4, 2, 4, 6)),
    "ltx_video": ("video", (4, 3, 2, 4)),
    "minimax_h3": ("video", (16, 2, 3, 2)),
    "minimax_music": ("audio", (4, 8)),
    "mochi": ("video", (4, 3, 8, 6)),
    "motif_video": ("video", (4, 3, 4, 8)),
    "sana": ("image", (4, 4, 8)),
    "sdxl": ("image", (4, 16, 16)),
    "skyreels_v2": ("video", (4, 4, 8, 6)),
    "stable_audio": ("audio", (4, 8)),
    "wan": ("video", (4, 3, 8, 8)),
}
"""For families whose sample is not an image of (4, 8, 8)."""


@pytest.mark.parametrize("family", list_families())
def test_every_family_says_how_it_is_fed(family):
    module = declared(family, load_tiny(family))
    model = module.tiny_model()
    feed = Feed(module, model)
    check_forward(feed, model)
    assert (feed.layout.modality, feed.layout.shape) == PLAIN.get(family, ("image", (4, 8, 8)))
    assert feed.classes == (10 if family == "dit" else None)


def test_the_trainers_own_module_says_so_too():
    assert declared("dit", digits_dit) is digits_dit
    assert declared("mine", tiny()).axes == "BCHW"


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (tiny(axes="B(HW)C"), "family mine: tiny lacks grid, .* write there grid = the sizes"),
        (tiny(labels="y"), "family mine: tiny lacks classes, .* write there classes = a function of the model"),
        (
            ModuleType("mine.tiny"),
            "mine.tiny lacks modality, sample, axes, timestep, tiny_model, example_inputs, .*; sample = the name of",
        ),
    ],
)
def test_a_module_that_lacks_something_is_refused(module, said):
    with pytest.raises(ConfigError, match=said) as caught:
        declared("mine", module)
    assert "\n" not in str(caught.value)


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
def test_the_scale_of_time_is_read_from_the_example(example, expected):
    model = Echo()
    feed_once(tiny(lambda n: images(n) | {"t": example.repeat(n)[:n]}), model)
    assert model.inputs["t"].tolist() == expected
    assert model.inputs["t"].dtype == example.dtype


def test_time_of_each_token_is_expanded():
    model = Echo()
    feed_once(tiny(lambda n: images(n) | {"t": torch.rand(n, 6)}), model)
    assert model.inputs["t"].shape == (3, 6)
    assert model.inputs["t"][1].unique().tolist() == [0.5]


def test_labels_go_in_where_they_are_declared():
    model = Echo()
    example = lambda n: images(n, y=torch.zeros(n, dtype=torch.long))  # noqa: E731
    feed, *_ = feed_once(tiny(example), model)
    assert model.inputs["y"].tolist() == [0, 0, 0]
    assert feed.classes is None
    feed, *_ = feed_once(tiny(example, labels="y", classes=lambda model: 10), model)
    assert model.inputs["y"].tolist() == [0, 1, 2]
    assert (feed.classes, feed.null_label) == (10, None)


def test_a_list_of_samples_is_one_batch():
    model = Echo(lambda sample: list(sample.unbind()))
    example = lambda n: {"x": [torch.randn(4, 1, 8, 8) for _ in range(n)], "t": torch.rand(n)}  # noqa: E731
    _, noisy, out = feed_once(tiny(example, axes="CTHW"), model)
    assert isinstance(model.inputs["x"], list)
    assert torch.equal(out, noisy)


def test_conditions_in_further_channels_stay():
    model = Echo(lambda sample: sample[..., :3])
    example = lambda n: {"x": torch.randn(n, 2, 8, 8, 7), "t": torch.rand(n)}  # noqa: E731
    feed, noisy, out = feed_once(tiny(example, modality="video", axes="BTHWC", channels=3), model)
    assert feed.layout.shape == (3, 2, 8, 8)
    assert torch.equal(model.inputs["x"][..., :3], noisy.permute(0, 2, 3, 4, 1))
    assert model.inputs["x"][..., 3:].abs().min() > 0
    assert torch.equal(model.inputs["x"][0, ..., 3:], model.inputs["x"][2, ..., 3:])
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
    _, noisy, out = feed_once(tiny(), Echo(output))
    assert torch.equal(out, noisy)


def test_a_model_that_predicts_nothing_of_that_shape_is_refused():
    model = Echo(lambda sample: sample[:, :, :4])
    with pytest.raises(ConfigError, match=r"returned \(2, 3, 4, 8\) for a sample of shape \(2, 3, 8, 8\)"):
        check_forward(Feed(tiny(), model), model)


@pytest.mark.parametrize(
    ("declarations", "said"),
    [
        ({"sample": "zt"}, r"tiny declares 'zt' as a Tensor .* example_inputs are x \(Tensor\), t \(Tensor\)"),
        ({"timestep": "sigma"}, "tiny declares 'sigma' as a Tensor"),
        ({"labels": "y", "classes": lambda model: 10}, "tiny declares 'y' as a Tensor"),
        ({"axes": "CHW"}, r"tiny declares 'x' as a list \(axes CHW\)"),
    ],
)
def test_a_name_that_is_not_among_the_inputs_is_refused(declarations, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Feed(tiny(**declarations), Echo())
    assert "\n" not in str(caught.value)


def test_a_tiny_module_may_read_the_prediction_itself():
    module = tiny(prediction=lambda output, sample: output["patches"].reshape(sample.shape))
    _, noisy, out = feed_once(module, Echo(lambda sample: {"patches": sample.flatten(1)}))
    assert torch.equal(out, noisy)


def cog_video(axes: str, frames: int = 3) -> tuple[ModuleType, nn.Module]:
    """A model whose clips are (B, T, C, H, W), of 4 channels."""
    from diffusers import CogVideoXTransformer3DModel

    sizes = {"sample_width": 8, "sample_height": 8, "sample_frames": 4 * frames - 3, "patch_size": 2}
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=6,
        num_layers=1,
        max_text_seq_length=5,
        **sizes,
    )
    example = lambda n: {  # noqa: E731
        "hidden_states": torch.randn(n, frames, 4, 8, 8),
        "encoder_hidden_states": torch.randn(n, 5, 6),
        "timestep": torch.randint(0, 1000, (n,)),
    }
    return tiny(example, modality="video", sample="hidden_states", timestep="timestep", axes=axes), model


def test_frames_before_channels():
    module, model = cog_video("BTCHW")
    feed = Feed(module, model)
    assert feed.layout.shape == (4, 3, 8, 8)
    seen = []
    model.register_forward_pre_hook(lambda model, args, inputs: seen.append(inputs["hidden_states"]), with_kwargs=True)
    noisy = torch.randn(2, 4, 3, 8, 8)
    prediction = feed(model, noisy, torch.full((2,), 0.5), torch.zeros(2))
    assert torch.equal(seen[0], noisy.transpose(1, 2))
    assert prediction.shape == noisy.shape


def test_frames_taken_for_channels_are_refused():
    module, model = cog_video("BCTHW")
    with pytest.raises(ConfigError, match=r"axes BCTHW, with 3 channels .* in_channels of CogVideoX\w+ is 4") as caught:
        Feed(module, model)
    assert "\n" not in str(caught.value)


def test_example_inputs_that_fail_are_the_users_error():
    def broken(n):
        raise KeyError("patch\nsize")

    with pytest.raises(ConfigError, match="example_inputs does not fit Echo") as caught:
        Feed(tiny(broken), Echo())
    assert "\n" not in str(caught.value)


def test_drawing_examples_leaves_the_random_generator_alone():
    model, module = Echo(), tiny()
    before = torch.get_rng_state()
    Feed(module, model)
    assert torch.equal(torch.get_rng_state(), before)
