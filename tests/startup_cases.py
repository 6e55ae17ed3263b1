"""What can be wrong at start-up, and what must be said: one table for ``attach``, ``check`` and ``train``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from layersync_core.cli.meta import build_on_meta
from layersync_core.errors import (
    AdapterNotInstalledError,
    ConfigError,
    LayerSyncError,
    UnknownFamilyError,
    UnsupportedFamilyError,
)
from layersync_core.families import registry
from layersync_core.families.known import KNOWN, KnownFamily
from tests import fakes
from tests.fakes import Distribution

Json = dict[str, Any]

DIT: Json = {
    "_class_name": "DiTTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 6,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}
FLUX: Json = {
    "_class_name": "FluxTransformer2DModel",
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "pooled_projection_dim": 8,
    "axes_dims_rope": [4, 6, 6],
}
_UNET: Json = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": [2, 4],
    "cross_attention_dim": 64,
}
SDXL: Json = _UNET | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
}
SD15 = _UNET
KOLORS = SDXL | {
    "projection_class_embeddings_input_dim": 5632,
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
}
LUMINA2: Json = {"_class_name": "Lumina2Transformer2DModel", "num_layers": 1, "num_refiner_layers": 1}
CASCADE_C: Json = {
    "_class_name": "StableCascadeUNet",
    "conditioning_dim": 32,
    "block_out_channels": [32],
    "num_attention_heads": [2],
    "down_num_layers_per_block": [1],
    "up_num_layers_per_block": [1],
    "down_blocks_repeat_mappers": [1],
    "up_blocks_repeat_mappers": [1],
    "block_types_per_layer": [["SDCascadeResBlock", "SDCascadeTimestepBlock"]],
    "dropout": [0.1],
    "self_attn": [True],
}
CASCADE_B = CASCADE_C | {"effnet_in_channels": 16}
_KANDINSKY: Json = {
    "_class_name": "Kandinsky5Transformer3DModel",
    "in_text_dim": 8,
    "in_text_dim2": 8,
    "time_dim": 8,
    "ff_dim": 8,
    "num_text_blocks": 1,
}
KANDINSKY_IMAGE = _KANDINSKY | {"model_dim": 2560, "num_visual_blocks": 50, "visual_cond": False}
KANDINSKY_VIDEO_LITE = _KANDINSKY | {"model_dim": 1792, "num_visual_blocks": 32, "visual_cond": True}
KANDINSKY_VIDEO_PRO = _KANDINSKY | {"model_dim": 4096, "num_visual_blocks": 60, "visual_cond": True}
KANDINSKY_CUSTOM = _KANDINSKY | {"model_dim": 128, "num_visual_blocks": 2, "visual_cond": True}
OMNIGEN: Json = {
    "_class_name": "OmniGenTransformer2DModel",
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "pad_token_id": 0,
    "rope_scaling": {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
}

ON: Json = {"layersync_enabled": True}
AUTHORS: Json = {"loss_type": "layer_sync"}
GOOD = ON | {"layersync_student_block": 2, "layersync_teacher_block": 4}


def instance(config: Mapping[str, Any]) -> nn.Module:
    """Return a model of a config on the meta device; a class that diffusers lacks is made up."""
    try:
        model: nn.Module = build_on_meta(config)
    except ConfigError as error:
        if "is not a class of diffusers" not in str(error):
            raise
        return fakes.model(config["_class_name"], config=dict(config), blocks=fakes.blocks())
    return model


@dataclass(frozen=True)
class StartupCase:
    """A start-up error: settings, the model they are for, what is installed, and parts of the one line."""

    name: str
    settings: Mapping[str, Any]
    says: tuple[str, ...]
    error: type[LayerSyncError] = ConfigError
    config: Mapping[str, Any] = field(default_factory=DIT.copy)
    distributions: tuple[Distribution, ...] = ()
    known: Mapping[str, KnownFamily] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def arrange(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Install the case's distributions for one test."""
        for distribution in self.distributions:
            distribution.install(folder, monkeypatch)
        for family, known in self.known.items():
            monkeypatch.setitem(KNOWN, family, known)
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write the model's folder and the file of settings, and return both paths."""
        model, settings = folder / "model", folder / "settings.json"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(self.config))
        settings.write_text(json.dumps(self.settings))
        return model, settings


def _refused(name: str, config: Mapping[str, Any], *says: str) -> StartupCase:
    return StartupCase(f"refused: {name}", GOOD, ("does not support", *says), UnsupportedFamilyError, config)


_TWO_STAGES = fakes.Distribution(
    "somebodys-unet",
    "from layersync_core import BlockStack, BlockStackAdapter\n"
    "adapter = BlockStackAdapter(family='tiny_unet', model_classes='UNet2DConditionModel', stacks=[\n"
    "    BlockStack('down_blocks.0.attentions.0.transformer_blocks', width=lambda model, block: 32, stage='32'),\n"
    "    BlockStack('down_blocks.1.attentions.0.transformer_blocks', width=lambda model, block: 64, stage='16'),\n"
    "])\n",
    {"tiny_unet": "{module}:adapter"},
)
_NOWHERE: Json = {"_class_name": "NowhereTransformer2DModel"}
_UNHEARD: Json = {"_class_name": "UnheardOfTransformer3DModel"}
_RANGE = ("LayerSync could not find layer 7", "6 blocks", "1 to 6")

CASES = [
    # student block missing
    StartupCase("no student", ON, ("layersync_student_block is missing", "required")),
    StartupCase("teacher alone", ON | {"layersync_teacher_block": 4}, ("layersync_student_block is missing",)),
    StartupCase("student empty", GOOD | {"layersync_student_block": ""}, ("layersync_student_block is missing",)),
    StartupCase("student null", GOOD | {"layersync_student_block": None}, ("layersync_student_block is missing",)),
    StartupCase("not enabled", {"layersync_student_block": 2}, ("layersync_student_block", "layersync_enabled")),
    StartupCase("alias that does not count", ON | {"encoder_depth": 2}, ("encoder_depth", "loss_type: layer_sync")),
    StartupCase("a section", {"layersync": {"enabled": True}}, ("layersync is a section", "layersync_enabled")),
    StartupCase("capitals", {"LAYERSYNC_ENABLED": "true"}, ("LAYERSYNC_ENABLED", "layersync_enabled")),
    StartupCase("another spelling", GOOD | {"layer_sync_weight": 1}, ("layer_sync_weight", "layersync_lambda")),
    # lambda not finite or not above 0
    *(
        StartupCase(
            f"lambda {value!r}", GOOD | {"layersync_lambda": value}, ("layersync_lambda", "finite and greater than 0")
        )
        for value in (0, 0.0, "0", -0.2, "-1e-9", float("nan"), "nan", float("inf"), "-inf")
    ),
    StartupCase("lambda by its alias", GOOD | AUTHORS | {"--reg-weight": 0}, ("layersync_lambda", "greater than 0")),
    StartupCase("lambda boolean", GOOD | {"layersync_lambda": True}, ("layersync_lambda is True", "boolean")),
    StartupCase("lambda text", GOOD | {"layersync_lambda": "much"}, ("layersync_lambda is 'much'", "valid number")),
    # negative, non-integer or boolean block
    *(
        StartupCase(f"{key} {value!r}", GOOD | {key: value}, (f"{key} is {value!r}", says))
        for key in ("layersync_student_block", "layersync_teacher_block")
        for value, says in (
            (-1, "greater than or equal to 0"),
            ("-3", "greater than or equal to 0"),
            (1.5, "valid integer"),
            ("2.5", "valid integer"),
            (True, "boolean"),
            (False, "boolean"),
            ("two", "valid integer"),
            ([2], "valid integer"),
        )
    ),
    StartupCase("block by its alias", AUTHORS | {"encoder-depth": -1}, ("layersync_student_block is -1",)),
    # unknown keys and values
    StartupCase(
        "unknown key", GOOD | {"layersync_lamda": 0.2}, ("layersync_lamda", "did you mean", "layersync_lambda")
    ),
    StartupCase("unknown key in flag form", GOOD | {"--layersync-studentblock": 2}, ("layersync_studentblock", "did")),
    StartupCase("preset", GOOD | {"layersync_preset": "best"}, ("layersync_preset is 'best'", "'paper' or 'lora'")),
    StartupCase("tokens", GOOD | {"layersync_tokens": "text"}, ("layersync_tokens is 'text'", "'target' or 'all'")),
    StartupCase("enabled", GOOD | {"layersync_enabled": "maybe"}, ("layersync_enabled is 'maybe'", "boolean")),
    StartupCase("steps", GOOD | {"layersync_warmup_steps": -1}, ("layersync_warmup_steps is -1",)),
    StartupCase(
        "contradiction",
        GOOD | AUTHORS | {"--encoder-depth": 3},
        ("layersync_student_block is 2", "--encoder-depth is 3", "different values"),
    ),
    # pairs
    StartupCase("pairs and blocks", GOOD | {"layersync_pairs": [[2, 4]]}, ("layersync_pairs", "exclude each other")),
    StartupCase("no pairs", ON | {"layersync_pairs": []}, ("layersync_pairs is empty",)),
    StartupCase("pair of one", ON | {"layersync_pairs": [[2]]}, ("[2]", "[student, teacher]")),
    StartupCase("pair of booleans", ON | {"layersync_pairs": [[True, 4]]}, ("[True, 4]", "[student, teacher]")),
    StartupCase("pair below 0", ON | {"layersync_pairs": [[-1, 4]]}, ("[-1, 4]", "whole numbers from 0")),
    StartupCase("pair with weight 0", ON | {"layersync_pairs": [[2, 4, 0]]}, ("[2, 4, 0]", "greater than 0")),
    StartupCase("pair twice", ON | {"layersync_pairs": [[2, 4], [2, 4, 0.1]]}, ("[2, 4]", "twice")),
    StartupCase(
        "cut off in the warm-up",
        GOOD | {"layersync_warmup_steps": 5, "layersync_cutoff_step": "5"},
        ("layersync_cutoff_step is 5", "layersync_warmup_steps 5"),
    ),
    StartupCase("on and off", GOOD | AUTHORS | {"layersync_enabled": False}, ("layer_sync", "False", "different")),
    # deeper than the model
    StartupCase("student too deep", GOOD | {"layersync_student_block": 7}, (*_RANGE, "student")),
    StartupCase("teacher too deep", GOOD | {"layersync_teacher_block": "7"}, (*_RANGE, "teacher")),
    StartupCase("pair too deep", ON | {"layersync_pairs": [[2, 4], [3, 7]]}, (*_RANGE, "teacher")),
    StartupCase("too deep, dual and single streams", GOOD | {"layersync_teacher_block": 7}, _RANGE, config=FLUX),
    # another width or stage
    StartupCase(
        "stages",
        ON | {"layersync_student_block": 1, "layersync_teacher_block": 2},
        ("down_blocks.0.attentions.0.transformer_blocks.0", "down_blocks.1.attentions.0.transformer_blocks.0", "64"),
        config=SD15,
        distributions=(_TWO_STAGES,),
    ),
    # families that are refused
    _refused("kolors", KOLORS, "Kolors", "ChatGLM"),
    _refused("lumina2", LUMINA2, "Lumina 2", "joint text-image sequence"),
    _refused("stable_cascade_c", CASCADE_C, "Stable Cascade", "convolutional UNet"),
    _refused("stable_cascade_b", CASCADE_B, "Stable Cascade", "convolutional UNet"),
    _refused("kandinsky5_image", KANDINSKY_IMAGE, "Kandinsky 5 Image"),
    _refused("kandinsky5_video of no released size", KANDINSKY_CUSTOM, "Kandinsky 5 Image", "kandinsky5_video"),
    _refused("omnigen", OMNIGEN, "OmniGen", "causal sequence"),
    # adapters
    StartupCase(
        "not installed",
        GOOD,
        ("NowhereTransformer2DModel", "family nowhere_xl", "pip install layersync-adapter-nowhere-xl"),
        AdapterNotInstalledError,
        _NOWHERE,
        known={"nowhere_xl": KnownFamily("Nowhere XL", ("NowhereTransformer2DModel",))},
    ),
    StartupCase(
        "left out",
        GOOD,
        ("family dit", "LAYERSYNC_LOAD", "add dit"),
        AdapterNotInstalledError,
        environment={"LAYERSYNC_LOAD": "flux, trainer"},
    ),
    StartupCase(
        "unknown class",
        GOOD,
        ("UnheardOfTransformer3DModel", "installed families:", "dit", registry.GUIDE),
        UnknownFamilyError,
        _UNHEARD,
    ),
    StartupCase(
        "two distributions for one family",
        GOOD,
        ("family dit", "layersync-adapter-dit", "somebodys-dit"),
        distributions=(fakes.adapter("somebodys-dit", "dit", "DiTTransformer2DModel"),),
    ),
    StartupCase(
        "broken adapter",
        GOOD,
        ("family nowhere", "somebodys-nowhere 9.8", "a_package_that_is_missing"),
        AdapterNotInstalledError,
        _NOWHERE,
        distributions=(fakes.broken("somebodys-nowhere", "nowhere"),),
        known={"nowhere": KnownFamily("Nowhere", ("NowhereTransformer2DModel",))},
    ),
]
