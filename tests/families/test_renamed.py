"""Released configurations that name a class as diffusers called it before: DiT's and PixArt's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import nn

from layersync_core import UnknownFamilyError, attach, load_tiny, resolve
from layersync_core.cli import main
from layersync_core.cli.meta import build_on_meta
from layersync_plugin_trainer.models import find_source
from tests.models import assert_same_gradients, gradients, gradients_by_autograd, mean_cosine, randomise, settings
from tests.run.conftest import launch as launch
from tests.run.inside import Launch, main_loss, sgd
from tests.startup_cases import GOOD, SD15

# As facebook/DiT-XL-2-256 and PixArt's repositories have them.
_SHARED: dict[str, Any] = {
    "_class_name": "Transformer2DModel",
    "_diffusers_version": "0.12.0.dev0",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_num_groups": 32,
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "upcast_attention": False,
    "use_linear_projection": False,
}
DIT_XL_2 = _SHARED | {"norm_type": "ada_norm_zero", "cross_attention_dim": None, "sample_size": 32}
_PIXART = _SHARED | {"norm_type": "ada_norm_single", "cross_attention_dim": 1152, "caption_channels": 4096}
PIXART_ALPHA = _PIXART | {"sample_size": 64, "double_self_attention": False, "norm_eps": 1e-06}
PIXART_SIGMA = _PIXART | {"sample_size": 128, "interpolation_scale": 2, "use_additional_conditions": False}

RELEASED = pytest.mark.parametrize(
    ("family", "kind", "config"),
    [
        ("dit", "DiTTransformer2DModel", DIT_XL_2),
        ("pixart", "PixArtTransformer2DModel", PIXART_ALPHA),
        ("pixart", "PixArtTransformer2DModel", PIXART_SIGMA),
    ],
    ids=["DiT-XL-2", "PixArt-alpha", "PixArt-Sigma"],
)
SMALL = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 4, "sample_size": 8}


# diffusers, of its own class.
pytestmark = pytest.mark.filterwarnings("ignore:`Transformer2DModelOutput` is deprecated:FutureWarning")


@RELEASED
class TestReleased:
    def test_from_a_config(self, family: str, kind: str, config: dict[str, Any]) -> None:
        assert resolve(config).family == family
        model = build_on_meta(config)
        assert type(model).__name__ == kind
        assert len(resolve(model).list_blocks(model)) == 28

    @pytest.mark.parametrize("part", [".", "transformer"])
    def test_commands(
        self, family: str, kind: str, config: dict[str, Any], part: str, tmp_path: Path, capsys: Any
    ) -> None:
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / "config.json").write_text(json.dumps(config))
        assert main(["inspect", str(tmp_path)]) == 0
        assert f"{kind}: family {family} (" in capsys.readouterr().out
        flags = [f"--{key}={value}" for key, value in GOOD.items()]
        assert main(["check", str(tmp_path), *flags]) == 0
        assert "student: block 2 of 28 (transformer_blocks.1)" in capsys.readouterr().out

    def test_the_class_that_earlier_versions_build(self, family: str, kind: str, config: dict[str, Any]) -> None:
        model, inputs = earlier(config)
        states: list[torch.Tensor] = []
        handles = [
            model.transformer_blocks[index].register_forward_hook(lambda *call: states.append(call[2]))
            for index in (0, 2)
        ]
        model(**inputs)
        for handle in handles:
            handle.remove()
        expected = -0.5 * mean_cosine(*states)
        reference = gradients_by_autograd(expected, model)
        with attach(model, settings(1, 3)) as sync:
            assert sync.family == family
            model(**inputs)
            loss = sync.loss()
            torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
            loss.backward()
            assert_same_gradients(gradients(model), reference)

    def test_under_run(self, family: str, kind: str, config: dict[str, Any], launch: Launch) -> None:
        training = launch()
        model, inputs = earlier(config)
        optimiser = sgd(model)
        main_loss(model(**inputs)).backward()
        optimiser.step()
        assert [line.split(":")[0] for line in training.journal.status.targets] == [
            f"Transformer2DModel#1 (family {family})"
        ]


@pytest.mark.parametrize(
    ("family", "norm", "kind"),
    [
        ("dit", "ada_norm_zero", "DiTTransformer2DModel"),
        ("pixart", "ada_norm_single", "PixArtTransformer2DModel"),
    ],
)
def test_train_and_suggest_load_its_weights(family: str, norm: str, kind: str, tmp_path: Path) -> None:
    load_tiny(family).tiny_model().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_class_name": "Transformer2DModel", "norm_type": norm}))
    source = find_source(str(tmp_path), None)
    assert source.family == family
    for model in (source.outline(), source.whole()):
        assert type(model).__name__ == kind
    assert not any(parameter.is_meta for parameter in source.whole().parameters())


def earlier(config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a small model of the class itself, which the constructor still makes, and inputs for it."""
    text = {"cross_attention_dim": 16, "caption_channels": 6} if config["cross_attention_dim"] else {}
    values = {key: value for key, value in (config | SMALL | text).items() if not key.startswith("_")}
    torch.manual_seed(0)
    model = randomise(diffusers.Transformer2DModel(**values)).eval()
    assert type(model) is diffusers.Transformer2DModel
    inputs = {"hidden_states": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 700])}
    if text:
        added = {"resolution": None, "aspect_ratio": None}
        return model, inputs | {"encoder_hidden_states": torch.randn(2, 5, 6), "added_cond_kwargs": added}
    return model, inputs | {"class_labels": torch.tensor([1, 2])}


@pytest.mark.parametrize("norm", ["layer_norm", None, ["ada_norm_zero"]])
def test_a_part_of_a_unet_is_no_model(norm: Any) -> None:
    with pytest.raises(UnknownFamilyError, match=r"this Transformer2DModel has norm_type .*, as the parts of UNets"):
        resolve({"_class_name": "Transformer2DModel", "norm_type": norm})


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (SD15 | {"cross_attention_dim": 768}, "Stable Diffusion 1.x's"),
        (SD15 | {"cross_attention_dim": 1024}, "Stable Diffusion 2.x's"),
        (SD15, "none of SDXL's"),
        (SD15 | {"cross_attention_dim": [768, 768]}, "none of SDXL's"),
        (SD15 | {"addition_embed_type": "text"}, "DeepFloyd IF's"),
        (SD15 | {"addition_embed_type": "image"}, "Kandinsky 2's or unCLIP's"),
        (SD15 | {"addition_embed_type": []}, "none of SDXL's"),
    ],
)
def test_other_unets_are_told_what_they_are_and_why_not(config: dict[str, Any], name: str) -> None:
    with pytest.raises(UnknownFamilyError) as error:
        resolve(config)
    said = str(error.value)
    assert said.startswith(f"this UNet2DConditionModel is {name} (addition_embed_type ")
    assert "one block deep" in said
    assert "no adapter knows" not in said
    assert "\n" not in said


def test_the_transformers_of_a_unet_are_no_candidates(launch: Launch) -> None:
    training = launch(layersync_student_block=1, layersync_teacher_block=7)
    unet = load_tiny("sdxl").tiny_model()
    parts: list[nn.Module] = [part for part in unet.modules() if type(part) is diffusers.models.Transformer2DModel]
    assert parts
    sgd(unet)
    assert [str(candidate) for candidate in training.candidates] == ["UNet2DConditionModel#1"]
    assert not any(part._forward_pre_hooks for part in parts)
