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
    assert settings.has_layersync_keys
    assert settings.regularizers["layersync_student_block"] == 2


def test_a_model_from_disk_gets_gentler_defaults():
    assert TrainerConfig(model="x").batch_size < TrainerConfig().batch_size
    assert TrainerConfig(model="x").peak_rate < TrainerConfig().peak_rate
    assert TrainerConfig(rank=4).peak_rate == TrainerConfig(model="x").peak_rate
