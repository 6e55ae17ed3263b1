"""CREPA's settings: those that cannot work are refused at start-up."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from layersync_core import BlockStackAdapter, ConfigError, attach
from plugins.crepa.tests.support import BACKBONE, encoding
from tests.models import TOY, build, hooks_on, settings, toy


def test_the_older_spelling_of_backbone_features() -> None:
    older = {"crepa_enabled": "yes", "crepa_block_index": "0", "crepa_use_backbone_features": "true"}
    with attach(toy(), older, adapter=TOY) as sync:
        assert sync.describe()[-2] == "crepa features: block 1 of 4 (blocks.0)"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"crepa_enabled": True}, "crepa_block_index is missing"),
        ({"crepa_block_index": 1, "crepa_lambda": 1}, r"crepa_block_index, crepa_lambda given without crepa_enabled"),
        (BACKBONE | {"crepa_use_backbone_features": False}, "two feature sources"),
        (BACKBONE | {"crepa_feature_source": "encoder", "crepa_use_backbone_features": True}, "two feature sources"),
        (BACKBONE | {"crepa_feature_source": "encoder", "crepa_teacher_block_index": 2}, "is for backbone features"),
        (BACKBONE | {"crepa_pixels": "pixels"}, "crepa_pixels is for the encoder"),
        (BACKBONE | {"crepa_feature_source": "self_flow"}, "self_flow is not supported: .* EMA teacher"),
        (BACKBONE | {"crepa_feature_source": ["dino"]}, r"crepa_feature_source is \['dino'\]: input should be"),
        (BACKBONE | {"crepa_feature_source": "dino"}, "crepa_feature_source is 'dino'"),
        ({"crepa_enabled": True, "crepa_block_index": 1}, r"crepa_pixels is missing: .*module:function"),
        (BACKBONE | {"crepa_blok_index": 1}, r"unknown setting crepa_blok_index; did you mean crepa_block_index"),
        (BACKBONE | {"crepa_block_index": 4}, r"crepa_block_index is 4.* 0, block 1 of 4 \(blocks\.0\), to 3, block 4"),
        (BACKBONE | {"crepa_teacher_block_index": 9}, r"crepa_teacher_block_index is 9, but the model has 4 blocks"),
        (BACKBONE | {"crepa_block_index": -1}, "crepa_block_index is -1"),
        (BACKBONE | {"crepa_block_index": True}, "a boolean is not a number"),
        (BACKBONE | {"crepa_lambda": 0}, "crepa_lambda is 0"),
        (BACKBONE | {"crepa_lambda": float("nan")}, "crepa_lambda is nan"),
        (BACKBONE | {"crepa_lambda": 1e-300}, "crepa_lambda is 1e-300: single precision takes it for 0 or infinity"),
        (BACKBONE | {"crepa_lambda_end": 1e300}, r"crepa_lambda_end is 1e\+300: single precision takes it for 0"),
        (BACKBONE | {"crepa_adjacent_tau": 0}, "crepa_adjacent_tau is 0"),
        (BACKBONE | {"crepa_similarity_threshold": 1.8}, r"threshold is 1\.8, .* is from -1\.736 to 1\.736"),
        (
            BACKBONE | {"crepa_similarity_threshold": 1.01, "crepa_adjacent_distance": 0},
            r"threshold is 1\.01, .* is from -1 to 1,",
        ),
        (BACKBONE | {"crepa_similarity_threshold": 1.01, "crepa_normalize_neighbour_sum": True}, r"from -1 to 1,"),
        (BACKBONE | {"crepa_adjacent_distance": -1}, "crepa_adjacent_distance is -1"),
        (BACKBONE | {"crepa_scheduler": "cosine"}, "set crepa_decay_steps"),
    ],
)
def test_settings_that_cannot_work(config: dict[str, Any], said: str) -> None:
    model = toy()
    with pytest.raises(ConfigError, match=said) as error:
        attach(model, config, adapter=TOY)
    assert "\n" not in str(error.value)
    assert hooks_on(model) == 0


def test_the_projector_needs_a_width() -> None:
    adapter = BlockStackAdapter(family="toy", model_classes="Toy", stacks="blocks")
    with pytest.raises(ConfigError, match=r"the width of block 1 of 4 \(blocks\.0\) is unknown"):
        attach(toy(), BACKBONE, adapter=adapter)


ON = {"crepa_enabled": True, "crepa_block_index": 0}


# What SimpleTuner's own files have.
@pytest.mark.parametrize(
    ("config", "said"),
    [
        (ON | {"crepa_self_flow": True}, "crepa_self_flow is not supported: .* EMA teacher"),
        (ON | {"crepa_self_flow": True, "crepa_self_flow_mask_ratio": 0.1}, "crepa_self_flow is not supported"),
        (ON | {"crepa_feature_source": "selfflow"}, "crepa_feature_source self_flow is not supported"),
        (BACKBONE | {"crepa_self_flow": True}, "crepa_self_flow is true: two feature sources"),
        (ON | {"crepa_self_flow": True, "crepa_use_backbone_features": True}, "are both true: two feature sources"),
        (
            BACKBONE | {"crepa_self_flow_mask_ratio": 0.1},
            "mask_ratio is for Self-Flow, .* leave it out",
        ),
        (BACKBONE | {"crepa_use_tae": True}, "crepa_use_tae decodes latents .* leave it out"),
        (BACKBONE | {"crepa_drop_vae_encoder": True}, "crepa_drop_vae_encoder frees the encoder .* leave it out"),
        (BACKBONE | {"crepa_model": "dinov2_vits14", "crepa_encoder": "dinov2_vitb14"}, "two spellings of one setting"),
    ],
)
def test_simple_tuners_keys_that_mean_something_else(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        attach(toy(), config, adapter=TOY)
    assert "did you mean" not in str(error.value)


def test_simple_tuners_keys_that_mean_the_same(folder: str) -> None:
    same = {"crepa_self_flow": False, "crepa_use_tae": "false", "crepa_drop_vae_encoder": False}
    theirs = encoding(folder, crepa_encoder=folder, crepa_feature_source="external", **same)
    del theirs["crepa_model"]
    with attach(build("wan")[0], theirs) as sync:
        assert f"crepa features: {folder}, pixels from pixel_values" in sync.describe()
    with attach(build("wan")[0], theirs | {"crepa_model": folder}):
        pass
    with attach(toy(), BACKBONE | {"crepa_feature_source": "internal"}, adapter=TOY) as sync:
        assert "crepa features: block 1 of 4 (blocks.0)" in sync.describe()


@pytest.mark.parametrize(
    "config", [{"crepa_enabled": False, "crepa_block_index": 99}, {"crepa_drop_vae_encoder": True}]
)
def test_switched_off_it_leaves_others_keys_alone(config: dict[str, Any]) -> None:
    model = toy()
    with attach(model, config, adapter=TOY) as sync:
        assert hooks_on(model) == 0
        assert sync.describe() == ["LayerSync is off"]


def test_the_block_is_named(folder: str) -> None:
    with attach(build("wan")[0], encoding(folder, **settings())) as sync:
        assert sync.describe() == [
            "family: wan",
            "crepa: block 2 of 4 (blocks.1), crepa_block_index 1",
            f"crepa features: {folder}, pixels from pixel_values",
            "crepa weight: 0.5",
            "student: block 1 of 4 (blocks.0)",
            "teacher: block 3 of 4 (blocks.2)",
            "weight: 0.5",
        ]


def test_the_readme_has_every_key_and_its_default() -> None:
    from layersync_plugin_crepa.config import CrepaConfig

    readme = (Path(__file__).parents[1] / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(crepa_\w+)` \| (\S+)", readme, re.MULTILINE))
    fields = CrepaConfig.model_fields
    told = {key: default.strip("`") for key, default in rows.items() if key in fields}
    assert told.keys() == fields.keys()
    for key, field in fields.items():
        if field.default is not None:
            assert told[key] == str(field.default).lower(), key


def test_its_keys_are_read_without_torch() -> None:
    code = "import sys, layersync_plugin_crepa as it; it.layersync_config_models(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
