"""Settings: SimpleTuner's names and defaults, contradictions at start-up, and where TwinFlow cannot run."""

from __future__ import annotations

import pytest
import torch

from layersync_core import ConfigError, LayerSyncConfig, attach, plugins
from layersync_core.cli import main
from layersync_core.losses.plugins import Plugins
from layersync_plugin_twinflow.config import TwinFlowConfig

ON = {"twinflow_enabled": True}
LAYERSYNC = {"layersync_enabled": True, "layersync_student_block": 1, "layersync_teacher_block": 2}


def objective(**settings):
    return plugins().objective(LayerSyncConfig.from_mapping(ON | settings))


def test_defaults_are_simpletuners():
    config = TwinFlowConfig(**ON)
    assert config.twinflow_target_step_count == 1
    assert config.twinflow_estimate_order == 2
    assert config.twinflow_enhanced_ratio == 0.5
    assert config.twinflow_delta_t == 0.01
    assert config.twinflow_target_clamp == 1.0
    assert (config.twinflow_require_ema, config.twinflow_allow_no_ema_teacher, config.ema) == (True, False, True)
    assert not config.twinflow_adversarial_enabled
    assert (config.twinflow_adversarial_weight, config.twinflow_rectify_weight) == (1.0, 1.0)


def test_strings_of_a_command_line_are_read_and_an_explicit_0_is_a_0():
    made = objective(twinflow_enhanced_ratio="0", twinflow_estimate_order="3", twinflow_allow_no_ema_teacher="true")
    assert made.name == "twinflow"
    assert (made._rule.enhanced_ratio, made._rule.order, made._config.ema) == (0.0, 3, False)
    weights = {"twinflow_adversarial_weight": 0, "twinflow_rectify_weight": 0}
    made = objective(twinflow_adversarial_enabled=True, **weights)
    assert (made._rule.adversarial_weight, made._rule.rectify_weight) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"twinflow_target_step_count": 9}, "twinflow_target_step_count"),
        ({"twinflow_target_step_count": 0}, "twinflow_target_step_count"),
        ({"twinflow_estimate_order": 0}, "twinflow_estimate_order"),
        ({"twinflow_estimate_order": True}, "twinflow_estimate_order"),
        ({"twinflow_enhanced_ratio": -0.5}, "twinflow_enhanced_ratio"),
        ({"twinflow_delta_t": 0}, "twinflow_delta_t"),
        ({"twinflow_target_clamp": "inf"}, "twinflow_target_clamp"),
        ({"twinflow_ema_decay": 1}, "twinflow_ema_decay"),
        ({"twinflow_require_ema": False}, "add twinflow_allow_no_ema_teacher: true"),
        ({"twinflow_require_ema": True, "twinflow_allow_no_ema_teacher": True}, "keep one of the two keys"),
        ({"twinflow_allow_no_ema_teacher": True, "twinflow_ema_decay": 0.9}, "twinflow_ema_decay has no effect"),
        ({"twinflow_adversarial_weight": 0.5}, "add twinflow_adversarial_enabled: true"),
        ({"twinflow_rectify_weight": 0.5}, "add twinflow_adversarial_enabled: true"),
        ({"twinflow_target_clamp": 1e-50}, "twinflow_target_clamp is 1e-50: single precision takes it for 0"),
        ({"twinflow_allow_diff2flow": True}, "trains every model by flow matching"),
        ({"twinflow_estimate_ordr": 3}, "twinflow_estimate_order"),
        ({"crepa_feature_source": "self_flow"}, "twinflow_enabled and crepa_feature_source self_flow exclude"),
        ({"crepa_self_flow": "true"}, "twinflow_enabled and crepa_feature_source self_flow exclude"),
    ],
)
def test_mistakes_and_contradictions(settings, said):
    with pytest.raises(ConfigError, match=said) as error:
        objective(**settings)
    assert "\n" not in str(error.value)


def test_keys_without_the_switch_would_do_nothing():
    with pytest.raises(ConfigError, match="given without twinflow_enabled"):
        plugins().objective(LayerSyncConfig.from_mapping({"twinflow_delta_t": 0.1}))
    assert (
        plugins().objective(LayerSyncConfig.from_mapping({"twinflow_enabled": False, "twinflow_delta_t": 0.1})) is None
    )


def test_without_an_ema_the_teacher_is_the_model():
    for settings in ({"twinflow_allow_no_ema_teacher": True}, {"twinflow_require_ema": False}):
        assert not objective(**settings | {"twinflow_allow_no_ema_teacher": True})._config.ema


def test_attach_and_run_refuse_it_by_name(capsys):
    with pytest.raises(ConfigError, match=r"objective twinflow replaces the main loss.*only layersync train"):
        attach(torch.nn.Linear(1, 1), LAYERSYNC | ON)
    flags = [word for key, value in (LAYERSYNC | ON).items() for word in (f"--{key}", str(value).lower())]
    assert main(["run", *flags, "--", "python", "-c", "raise SystemExit('it ran')"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "twinflow_enabled is set, but objective twinflow replaces the main loss" in line
    assert "only layersync train can run it" in line


def test_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr("layersync_core.losses.plugins.providers", lambda group: [])
    said = r"twinflow_enabled is set.*only layersync train can run it: pip install layersync-plugin-twinflow"
    with pytest.raises(ConfigError, match=said):
        Plugins().require(ON)
