"""The target time saved beside an exported model, and loaded into a plain diffusers model and pipeline."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import nn

from layersync_core import ConfigError, load_tiny
from layersync_plugin_twinflow import few_steps, load_twinflow
from layersync_plugin_twinflow.saving import FILE, save
from layersync_plugin_twinflow.target_time import NAME, TargetTime

STEPS = 4


@pytest.fixture
def folder(tmp_path):
    """A trained SD3 model as the trainer exports it, and the same model with its target time."""
    torch.manual_seed(0)
    model = load_tiny("sd3").tiny_model().eval()
    with torch.no_grad():  # a head that is zero at the start predicts nothing
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    time = TargetTime(model, "delta", False)
    with torch.no_grad():
        for weight in time.parameters():
            nn.init.normal_(weight, std=0.1)
    save(time, tmp_path / "transformer", "any")
    time.remove(model)
    model.save_pretrained(tmp_path / "transformer")
    return tmp_path


def pipeline(folder):
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(folder / "transformer").eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def conditions(seed=1):
    source = torch.Generator().manual_seed(seed)
    return torch.randn(2, 5, 12, generator=source), torch.randn(2, 8, generator=source)


def drawn_by(pipe, noise, sigmas):
    text, pooled = conditions()
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        latents=noise,
        height=64,
        width=64,
        sigmas=sigmas,
        num_inference_steps=len(sigmas),
        guidance_scale=1,
        output_type="latent",
    ).images


@pytest.mark.parametrize("sampler", ["few", "mul", "any"])
def test_a_plain_pipeline_samples_in_few_steps(folder, sampler):
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    pipe = pipeline(folder)
    load_twinflow(pipe, folder, sampler)
    even = [1 - step / STEPS for step in range(STEPS)]
    # The scheduler's shift of 3 moves them; s / (3 - 2 s) compensates for that.
    drawn = drawn_by(pipe, noise, [value / (3 - 2 * value) for value in even])

    model = SD3Transformer2DModel.from_pretrained(folder / "transformer").eval()
    time = load_twinflow(model, folder)
    text, pooled = conditions()

    def velocity(x, t, target):
        with time.told(t, target):
            return model(x, text, pooled, 1000 * t).sample

    expected = few_steps(velocity, noise, STEPS, sampler)
    torch.testing.assert_close(drawn, expected, atol=1e-4, rtol=1e-3)
    plain = drawn_by(pipeline(folder), noise, [value / (3 - 2 * value) for value in even])
    assert torch.allclose(plain, drawn, atol=1e-4) == (sampler == "mul"), "without the hook a model goes nowhere else"


def test_guidance_doubles_the_batch_and_both_halves_get_target_times(folder):
    pipe = pipeline(folder)
    time = load_twinflow(pipe, folder, "few")
    text, pooled = conditions()
    seen = []
    time.parts[0].register_forward_hook(lambda module, args, added: seen.append(args[0]))
    pipe.set_progress_bar_config(disable=True)
    pipe(
        prompt_embeds=text, pooled_prompt_embeds=pooled, negative_prompt_embeds=text,
        negative_pooled_prompt_embeds=pooled, height=64, width=64, num_inference_steps=1, guidance_scale=2,
        output_type="latent",
    )  # fmt: skip
    assert [distance.tolist() for distance in seen] == [[1.0] * 4]


def test_a_bare_model_may_set_its_own_target_times(folder):
    model = SD3Transformer2DModel.from_pretrained(folder / "transformer").eval()
    time = load_twinflow(model, folder, "few")
    text, pooled = conditions()
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        by_itself = model(x, text, pooled, torch.full((2,), 500.0)).sample
        with time.told(torch.full((2,), 0.5), torch.zeros(2)):
            told = model(x, text, pooled, torch.full((2,), 500.0)).sample
    torch.testing.assert_close(by_itself, told)
    half = model.to(torch.bfloat16)
    x, text, pooled = (value.bfloat16() for value in (x, text, pooled))
    assert half(x, text, pooled, torch.full((2,), 500.0)).sample.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.unlink(), r"has no twinflow.safetensors; give a model that layersync train exported"),
        (lambda file: file.write_bytes(file.read_bytes()[:-5]), r"twinflow.safetensors cannot be read \("),
        (lambda file: file.write_bytes(b""), r"twinflow.safetensors cannot be read \("),
    ],
)
def test_a_file_that_is_not_one_is_an_error(folder, spoil, said):
    spoil(folder / "transformer" / FILE)
    model = SD3Transformer2DModel.from_pretrained(folder / "transformer")
    with pytest.raises(ConfigError, match=said) as error:
        load_twinflow(model, folder)
    assert "\n" not in str(error.value)
    assert not hasattr(model, NAME)


def test_another_model_or_sampler_is_an_error_and_leaves_no_hook(folder):
    wan, sd3 = load_tiny("wan").tiny_model(), load_tiny("sd3").tiny_model()
    with pytest.raises(ConfigError, match=r"is of another model: it embeds the time at time_text_embed"):
        load_twinflow(wan, folder)
    with pytest.raises(ConfigError, match=r"sampler 'fewer' is none of few, mul, any"):
        load_twinflow(sd3, folder, "fewer")
    larger = SD3Transformer2DModel(**{**sd3.config, "num_attention_heads": 4, "caption_projection_dim": 64})
    with pytest.raises(ConfigError, match=r"does not fit this model: .*size mismatch"):
        load_twinflow(larger, folder)
    for model in (wan, sd3, larger):
        assert not hasattr(model, NAME)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ConfigError, match=r"a str is not a model, and has no transformer"):
        load_twinflow("a model", folder)
