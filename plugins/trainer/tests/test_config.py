from __future__ import annotations

import pytest

from layersync_core import ConfigError
from layersync_plugin_trainer.config import Settings, TrainerConfig


def test_every_key_is_documented():
    undocumented = [name for name, field in TrainerConfig.model_fields.items() if not field.description]
    assert undocumented == []


def test_values_of_flags_are_text():
    config = Settings({"max_train_steps": "7", "compare": "true", "learning_rate": "1e-3"}).trainer
    assert (config.max_train_steps, config.compare, config.learning_rate) == (7, True, 1e-3)


def test_absent_values_keep_the_defaults():
    assert Settings({"max_train_steps": None, "--family": ""}).trainer == TrainerConfig()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_trian_steps": 3}, "unknown setting max_trian_steps; did you mean max_train_steps"),
        ({"layersync_studnet_block": 3}, "did you mean layersync_student_block"),
        ({"max_train_steps": True}, "max_train_steps is True: a boolean is not a number"),
        ({"max_train_steps": 0}, "max_train_steps is 0"),
        ({"learning_rate": "nan"}, "learning_rate"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'"),
        ({"lr_scheduler": "exponential"}, "lr_scheduler is 'exponential'"),
        ({"lr_warmup_steps": 5}, "lr_warmup_steps has no effect with lr_scheduler constant"),
        ({"compare": True, "layersync_enabled": False}, "compare sets LayerSync against a vanilla arm"),
    ],
)
def test_a_setting_never_does_nothing(settings, text):
    with pytest.raises(ConfigError) as caught:
        Settings(settings)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_upstream_spellings_count_as_layersync_keys():
    settings = Settings({"--encoder-depth": 2, "gt_encoder_depth": 4, "loss_type": "layer_sync"})
    assert settings.over_default(1, 1)["layersync_teacher_block"] == 4
    assert settings.regularizers["layersync_student_block"] == 2


def test_a_model_from_disk_gets_gentler_defaults():
    assert TrainerConfig(model="x").batch_size < TrainerConfig().batch_size
    assert TrainerConfig(model="x").peak_rate < TrainerConfig().peak_rate
    assert TrainerConfig(rank=4).peak_rate == TrainerConfig(model="x").peak_rate


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"layersync_lambda": 0.5}, {"layersync_lambda": 0.5, "layersync_preset": None}),
        ({"layersync_preset": "lora"}, {"layersync_preset": "lora"}),
        ({"layersync_student_block": "3"}, {"layersync_student_block": "3"}),
        ({"layersync_teacher_block": 7}, {"layersync_teacher_block": 7}),
        ({"layersync_warmup_steps": 5}, {"layersync_warmup_steps": 5}),
        (
            {"layersync_pairs": [[1, 2]]},
            {"layersync_pairs": [[1, 2]], "layersync_student_block": None, "layersync_teacher_block": None},
        ),
        ({"crepa_enabled": False}, {"crepa_enabled": False}),
        ({}, {}),
    ],
)
def test_one_setting_changes_only_that_in_the_default_run(given, changed):
    default = {
        "layersync_enabled": True,
        "layersync_student_block": 2,
        "layersync_teacher_block": 5,
        "layersync_preset": "paper",
    }
    expected = {key: value for key, value in (default | changed).items() if value is not None}
    settings = Settings(given)
    assert settings.enabled
    assert settings.over_default(2, 5) == expected


def test_a_whole_configuration_is_taken_as_everywhere():
    given = {"layersync_enabled": True, "layersync_student_block": 3}
    assert Settings(given).over_default(2, 5) == given
    assert Settings({"layersync_enabled": False}).over_default(2, 5) == {"layersync_enabled": False}
    assert not Settings({"layersync_enabled": False, "layersync_student_block": 3}).enabled


def test_an_authors_spelling_that_does_not_count_is_reported():
    with pytest.raises(ConfigError, match=r"unknown setting reg_weight.*only beside loss_type: layer_sync"):
        Settings({"reg_weight": 0.5})
