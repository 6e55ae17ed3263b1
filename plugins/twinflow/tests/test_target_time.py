"""The target time on unmodified models: no effect at step 0, its effect afterwards, and what it must not affect."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from layersync_core import ConfigError, LayerSyncError, load_tiny
from layersync_plugin_twinflow.target_time import NAME, TargetTime
from tests.since import since

FAMILIES = ["dit", "sd3", "qwen_image", "wan", "sana"]
PLACES = {
    "dit": [f"transformer_blocks.{block}.norm1.emb.timestep_embedder" for block in range(6)],
    "sd3": ["time_text_embed.timestep_embedder"],
    "qwen_image": ["time_text_embed.timestep_embedder"],
    "wan": ["condition_embedder.time_embedder"],
    "sana": ["time_embed.emb.timestep_embedder"],
}
T, TARGET = torch.tensor([0.5, 0.9]), torch.tensor([0.1, 0.9])


def build(family, variant=None):
    torch.manual_seed(0)
    tiny = load_tiny(family)
    model = (tiny.tiny_model if variant is None else getattr(tiny, variant))().eval()
    with torch.no_grad():  # weights that start at zero would hide the time
        for weight in model.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.1)
    return model, tiny.example_inputs(model, 2)


def output(model, inputs):
    found = model(**inputs)
    return found.sample if hasattr(found, "sample") else found[0]


def disturb(module):
    with torch.no_grad():
        for weight in module.parameters():
            nn.init.normal_(weight, std=0.1)


@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize("convention", ["delta", "sign"])
@pytest.mark.parametrize("family", FAMILIES)
def test_at_step_0_a_model_is_the_plain_one_to_the_bit(family, convention, adversarial):
    model, inputs = build(family)
    plain = output(model, inputs)
    time = TargetTime(model, convention, adversarial)
    assert [place.path for place in time.places] == PLACES[family]
    with time.told(T, TARGET):
        assert torch.equal(output(model, inputs), plain)
    assert torch.equal(output(model, inputs), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_afterwards_each_sample_gets_its_own_distance(family):
    model, inputs = build(family)
    plain = output(model, inputs)
    time = TargetTime(model, "delta", False)
    disturb(time)
    with time.told(T, TARGET):
        told = output(model, inputs)
    assert not torch.allclose(told[0], plain[0], atol=1e-5), "0.5 to 0.1"
    assert torch.equal(told[1], plain[1]), "t' = t is the plain model"
    assert torch.equal(output(model, inputs), plain)
    told.square().mean().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in time.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sign_only_marks_negative_times(family):
    model, inputs = build(family)
    plain = output(model, inputs)
    time = TargetTime(model, "sign", True)
    disturb(time)
    assert torch.equal(time.own_time(torch.tensor([-0.5])), torch.tensor([0.5]))
    with time.told(torch.tensor([-0.5, 0.9]), torch.tensor([-0.5, 0.1])):
        told = output(model, inputs)
    assert not torch.allclose(told[0], plain[0], atol=1e-5)
    assert torch.equal(told[1], plain[1]), "a target time says nothing here"


def test_what_would_never_be_trained_is_not_there():
    model, _ = build("dit")
    assert not [*TargetTime(model, "sign", False).parameters()]


@pytest.mark.parametrize("family", FAMILIES)
def test_taken_off_a_model_is_what_it_was(family):
    model, inputs = build(family)
    names, plain = [*model.state_dict()], output(model, inputs)
    time = TargetTime(model, "delta", True)
    assert any(name.startswith(NAME) for name in model.state_dict())
    with pytest.raises(ConfigError, match="already has a target time"):
        TargetTime(model, "delta", True)
    disturb(time)
    time.remove(model)
    assert [*model.state_dict()] == names
    with time.told(T, TARGET):
        assert torch.equal(output(model, inputs), plain)


@since("diffusers", "0.34", "its Wan has no times of single tokens")
def test_times_of_single_tokens():
    model, inputs = build("wan")
    inputs["timestep"] = inputs["timestep"][:, None].expand(2, 3 * 4 * 4).clone()
    time = TargetTime(model, "delta", False)
    disturb(time)
    plain = output(model, inputs)
    with time.told(T, TARGET):
        told = output(model, inputs)
    assert not torch.allclose(told[0], plain[0], atol=1e-5)
    assert torch.equal(told[1], plain[1])


def test_references_go_nowhere():
    model, inputs = build("qwen_image", "tiny_edit")
    plain = output(model, inputs)
    time = TargetTime(model, "delta", False)
    disturb(time)
    rows = []
    model.time_text_embed.timestep_embedder.register_forward_hook(lambda module, args, out: rows.append(out))
    with time.told(T, TARGET):
        told = output(model, inputs)
    output(model, inputs)
    assert not torch.allclose(told[0], plain[0], atol=1e-5)
    assert len(rows[0]) == 4
    assert torch.equal(rows[0][2:], rows[1][2:])


def test_a_batch_of_another_size_is_an_error():
    model, inputs = build("sd3")
    time = TargetTime(model, "delta", False)
    with time.told(torch.rand(3), torch.rand(3)), pytest.raises(LayerSyncError, match="given for 3 samples"):
        output(model, inputs)


@pytest.mark.parametrize("family", ["flux", "pixart", "ltx_video"])
def test_other_families_are_refused_with_the_reason(family):
    model = load_tiny(family).tiny_model()
    with pytest.raises(
        ConfigError, match=f"cannot train family {family}: .* not known here; known are dit, qwen_image"
    ):
        TargetTime(model, "delta", False)


def test_other_classes_of_a_family_are_refused():
    class DiT(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList()
            self.t_embedder = nn.Linear(1, 1)

    with pytest.raises(ConfigError, match="cannot train a DiT: it has no time embedder at transformer_blocks"):
        TargetTime(DiT(), "delta", False)


def gradients(model, time, inputs, later):
    """The gradients of a main pass whose backward comes after another forward with other times."""
    with time.told(T, TARGET):
        loss = output(model, inputs).square().mean()
    if later:
        with time.told(TARGET, T), torch.no_grad():
            output(model, inputs)
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recomputed_block_gets_the_same_target_time(family):
    model, inputs = build(family)
    twin = copy.deepcopy(model)
    time = TargetTime(model, "delta", False)
    disturb(time)
    expected = gradients(model, time, inputs, later=False)
    twin.enable_gradient_checkpointing()
    again = TargetTime(twin, "delta", False)
    again.load_state_dict(time.state_dict())
    again.watched = True
    for name, gradient in gradients(twin, again, inputs, later=True).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=name)


def test_another_checkpointing_is_an_error_and_not_another_gradient():
    model, inputs = build("dit")
    time = TargetTime(model, "delta", False)
    time.watched = True
    for block in model.transformer_blocks:
        forward = block.forward
        block.forward = lambda *args, forward=forward, **kwargs: checkpoint(
            forward, *args, **kwargs, use_reentrant=False
        )
    with time.told(T, TARGET):
        loss = output(model, inputs).square().mean()
    with pytest.raises(LayerSyncError, match=r"ran without a target time: .* enable_gradient_checkpointing\(\)"):
        loss.backward()
