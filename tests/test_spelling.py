"""The spellings of a key: which mean one setting, which are a host's, and which are mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from layersync_core import ConfigError, LayerSyncConfig
from layersync_core.config import ALIASES
from layersync_core.spelling import FIELDS, merged, overlay, refuse_other_case
from tests.configs import GOOD, ON, STUDENT, TEACHER, complaint, read, settings_of


class TestSpellings:
    @pytest.mark.parametrize("prefix", ["", "--"])
    @pytest.mark.parametrize("separator", ["_", "-"])
    def test_prefix_and_hyphens_of_every_key(self, prefix: str, separator: str) -> None:
        plain = GOOD | {
            "layersync_lambda": 0.3,
            "layersync_preset": "lora",
            "layersync_tokens": "target",
            "layersync_generated_tokens": 16,
            "layersync_guard": False,
            "layersync_warmup_steps": 1,
            "layersync_decay_steps": 2,
            "layersync_cutoff_step": 3,
            "layersync_log_grad_ratio": True,
        }
        assert {*plain, "layersync_pairs"} == set(LayerSyncConfig.model_fields)
        spelt = {prefix + key.replace("_", separator): value for key, value in plain.items()}
        assert settings_of(LayerSyncConfig.from_mapping(spelt)) == plain

    @pytest.mark.parametrize(
        ("student", "teacher", "weight", "loss"),
        [
            ("--encoder-depth", "--gt-encoder-depth", "--reg-weight", "--loss-type"),
            ("encoder-depth", "gt-encoder-depth", "reg-weight", "loss-type"),
            ("--encoder_depth", "--gt_encoder_depth", "--reg_weight", "--loss_type"),
            ("encoder_depth", "gt_encoder_depth", "reg_weight", "loss_type"),
        ],
    )
    def test_aliases(self, student: str, teacher: str, weight: str, loss: str) -> None:
        config = LayerSyncConfig.from_mapping({student: 8, teacher: "16", weight: 0.5, loss: "layer_sync"})
        assert config.layersync_enabled
        assert config.pairs == [(8, 16, 0.5)]

    def test_an_alias_has_no_prefix(self) -> None:
        assert "unknown setting" in complaint(GOOD | {"layersync_encoder_depth": 8})

    @pytest.mark.parametrize("value", ["mse", "huber", "l2", ""])
    def test_another_loss_type_is_the_host_s(self, value: str) -> None:
        assert settings_of(read(loss_type=value)) == GOOD
        assert settings_of(LayerSyncConfig.from_mapping({"loss_type": value})) == {}

    @pytest.mark.parametrize(("alias", "key"), [(alias, f"layersync_{name}") for alias, name in ALIASES.items()])
    @pytest.mark.parametrize("prefix", ["", "--"])
    def test_both_spellings_with_one_value_are_fine(self, alias: str, key: str, prefix: str) -> None:
        for value in (9, "9", "9.0", None):
            assert settings_of(read(**{key: 9, prefix + alias: value})) == GOOD | {key: 9}

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({STUDENT: 8}, {"--encoder-depth": 9}),
            ({"encoder_depth": 9}, {STUDENT: 8}),
            ({STUDENT: 8}, {"--layersync_student_block": 9}),
            ({STUDENT: 8}, {"layersync-student-block": 9}),
            ({TEACHER: 16}, {"gt_encoder_depth": 17}),
            ({"layersync_lambda": 0.2}, {"reg_weight": 0.3}),
            ({"layersync_enabled": False}, {"loss_type": "layer_sync"}),
            ({STUDENT: 1}, {"encoder_depth": True}),
            ({"encoder_depth": True}, {STUDENT: 1}),
        ],
    )
    def test_both_spellings_with_different_values(self, one: dict[str, Any], other: dict[str, Any]) -> None:
        rest = {key: value for key, value in GOOD.items() if key not in one}
        message = complaint({"loss_type": "layer_sync", **rest, **one, **other})
        for key, value in (one | other).items():
            assert f"{key} is {value!r}" in message

    def test_a_key_that_is_no_text(self) -> None:
        assert "3" in complaint(GOOD | {3: 4})


class TestOtherPeoplesKeys:
    def test_are_ignored(self) -> None:
        host = {"lr": 1e-4, "--output_dir": "x", "layersync": 3, "crepa_enabled": True, "lambda": 0, "a\nb": [1]}
        assert settings_of(read(**host)) == GOOD

    def test_are_kept_for_plugins_under_plain_names(self) -> None:
        config = LayerSyncConfig.from_mapping(GOOD | {"--crepa-block": "3", "--lr": 1, "empty": None})
        assert config.given == GOOD | {"crepa_block": "3", "lr": 1}
        assert LayerSyncConfig(**GOOD).given == GOOD

    @pytest.mark.parametrize(
        ("key", "meant"),
        [
            ("layersync_student_blok", STUDENT),
            ("--layersync-lamda", "layersync_lambda"),
            ("layersync_studentblock", STUDENT),
            ("layersync_warmup", "layersync_warmup_steps"),
            ("layersync_cutoff_steps", "layersync_cutoff_step"),
            ("layersync_pair", "layersync_pairs"),
        ],
    )
    def test_unknown_ones_of_ours_are_not(self, key: str, meant: str) -> None:
        message = complaint(GOOD | {key: 1})
        assert key.lstrip("-").replace("-", "_") in message
        assert "did you mean" in message
        assert meant in message

    def test_nothing_near_lists_the_known_ones(self) -> None:
        message = complaint(GOOD | {"layersync_" + "q" * 60: 1})
        assert all(name in message for name in LayerSyncConfig.model_fields)

    def test_an_unknown_one_is_told_even_when_switched_off(self) -> None:
        assert "layersync_foo" in complaint({"layersync_enabled": False, "layersync_foo": 1})

    def test_a_line_break_in_a_key(self) -> None:
        assert "unknown setting" in complaint(GOOD | {"layersync_\nfoo": 1})


class TestSpellingsOfTheAuthors:
    """Hosts have keys of these names, with other meanings: they count only beside ``loss_type: layer_sync``."""

    @pytest.mark.parametrize(
        "host",
        [
            {"reg_weight": 1.0},  # the weight of regularisation images
            {"encoder_depth": 4, "gt_encoder_depth": 9},  # REPA's
            {"encoder_depth": "vit_b"},
            {"--reg-weight": 0, "loss_type": "huber"},
            {"encoder_depth": 4, "loss_type": None},
        ],
    )
    def test_are_the_host_s_without_it(self, host: dict[str, Any]) -> None:
        for preset, weight in ((None, 0.2), ("lora", 0.002)):
            assert read(layersync_preset=preset, **host).pairs == [(8, 16, weight)]
        pairs = ON | {"layersync_pairs": [[4, 12]]}
        assert LayerSyncConfig.from_mapping(pairs | host).pairs == [(4, 12, 0.2)]
        assert settings_of(LayerSyncConfig.from_mapping(host)) == {}

    @pytest.mark.parametrize("where", ["before", "after"])
    def test_count_beside_it(self, where: str) -> None:
        ours = {"reg_weight": 0.5, "encoder_depth": 4, "gt_encoder_depth": 9}
        switch = {"loss_type": "layer_sync"}
        config = LayerSyncConfig.from_mapping(switch | ours if where == "before" else ours | switch)
        assert config.pairs == [(4, 9, 0.5)]

    def test_are_named_where_a_student_is_missing(self) -> None:
        message = complaint(ON | {"--encoder-depth": 8, "reg_weight": 1})
        assert "layersync_student_block is missing" in message
        assert "encoder_depth, reg_weight" in message
        assert "loss_type: layer_sync" in message
        assert "loss_type" not in complaint(ON)

    @pytest.mark.parametrize("off", [False, "false", 0, "no"])
    def test_switched_on_and_off_at_once(self, off: Any) -> None:
        assert "different values" in complaint({"loss_type": "layer_sync", "layersync_enabled": off, STUDENT: 8})

    @pytest.mark.parametrize("value", ["layersync", "LAYER_SYNC", "layer-sync", "LayerSync", " layer_sync "])
    def test_a_switch_that_is_nearly_right(self, value: str) -> None:
        message = complaint({"loss_type": value, "encoder_depth": 8})
        assert repr(value) in message
        assert "is layer_sync" in message


class TestLookAlikes:
    @pytest.mark.parametrize(
        ("mapping", "says"),
        [
            ({"layersync": {"enabled": True, "student_block": 1}}, ("layersync is a", "layersync_student_block")),
            ({"layersync": {"layersync_enabled": True}}, ("layersync is a section", "as layersync_enabled")),
            ({"LayerSync": {}}, ("LayerSync is a section", "layersync_enabled")),
            ({"layer-sync": {"student_block": 1}}, ("layer-sync is a section", "layersync_student_block")),
            ({"layersync": True}, ("layersync would do nothing", "layersync_enabled")),
            ({"LAYERSYNC_ENABLED": "true"}, ("LAYERSYNC_ENABLED", "is layersync_enabled")),
            ({"LAYERSYNC_STUDENT_BLOCK": 1}, ("LAYERSYNC_STUDENT_BLOCK", "is layersync_student_block")),
            ({"--LayerSync-Lambda": 1}, ("--LayerSync-Lambda", "is layersync_lambda")),
            ({"layersyncStudentBlock": 1}, ("layersyncStudentBlock", "is layersync_student_block")),
            ({"layersync.teacher_block": 1}, ("layersync.teacher_block", "is layersync_teacher_block")),
            ({"enable_layer_sync": True}, ("enable_layer_sync", "is layersync_enabled")),
            ({"use_layersync": True}, ("use_layersync", "is layersync_enabled")),
            ({"layer_sync_source_block": 1}, ("layer_sync_source_block", "is layersync_student_block")),
            ({"layer_sync_target_block": 1}, ("layer_sync_target_block", "is layersync_teacher_block")),
            ({"layer_sync_weight": 1}, ("layer_sync_weight", "is layersync_lambda")),
            ({"train": {"layersync_enabled": True}}, ("train.layersync_enabled", "outermost")),
            ({"config": {"process": [{"x": 1}, {"layersync_lambda": 1}]}}, ("config.process.1.layersync_lambda",)),
            ({"model": {"layersync": {"enabled": True}}}, ("model.layersync is a section", "layersync_enabled")),
            ({"layersync": [{"student_block": 2}]}, ("layersync is a section",)),
            ({"layer sync enabled": True}, ("layer sync enabled", "is layersync_enabled")),
            ({"_layersync_enabled": True}, ("is layersync_enabled",)),
            ({"disable_layersync": True}, ("disable_layersync", "layersync_enabled: false")),
            ({"layer_sync_bn": 1}, ("layer_sync_bn would do nothing", "layersync_")),
            ({"layer_sync_warmup": 1}, ("did you mean layersync_warmup_steps",)),
            ({"train": {"LAYERSYNC_ENABLED": True}}, ("train.LAYERSYNC_ENABLED", "is layersync_enabled")),
            ({"train": {"layersyncEnabled": True}}, ("train.layersyncEnabled", "is layersync_enabled")),
        ],
    )
    def test_are_errors_that_name_the_right_spelling(self, mapping: dict[str, Any], says: tuple[str, ...]) -> None:
        message = complaint(mapping)
        assert [part for part in says if part not in message] == []

    @pytest.mark.parametrize("key", ["LAYERSYNC_LAMBDA", "layer_sync_lambda", "layersyncLambda"])
    def test_also_beside_settings_that_are_right(self, key: str) -> None:
        assert "is layersync_lambda" in complaint(GOOD | {key: 0.5})

    @pytest.mark.parametrize(
        "host",
        [
            {"layersync": 3},
            {"layer_synchronous_offload": True, "use_layer_synchronous": 1, "layer_syncs_per_step": 2},
            {"layers": 3, "sync_layers": True, "layer_decay": 0.1, "relayer_sync": 1},
            {"trackers": {"layersync_run": "x"}},  # LayerSync keys that a host stores next to the real settings
            {"sections": [[{"a": {"b": {"c": {}}}}]]},
        ],
    )
    def test_the_host_s_own_are_left_alone(self, host: dict[str, Any]) -> None:
        assert settings_of(read(**host)) == GOOD

    def test_a_switch_that_is_off_in_a_section_asks_for_nothing(self) -> None:
        assert settings_of(LayerSyncConfig.from_mapping({"train": {"layersync_enabled": False}})) == {}

    def test_names_what_is_meant_by_a_word_of_others(self) -> None:
        assert "did you mean layersync_lambda?" in complaint(GOOD | {"layersync_weight": 1})

    def test_the_fields_are_those_of_the_configuration(self) -> None:
        assert {f"layersync_{name}" for name in FIELDS} == {*LayerSyncConfig.model_fields}

    def test_a_section_that_holds_itself(self) -> None:
        section: dict[str, Any] = {}
        section["again"] = [section]
        assert settings_of(LayerSyncConfig.from_mapping({"section": section})) == {}


class TestFlagsOverAFile:
    @pytest.mark.parametrize(
        ("file", "flags", "expected"),
        [
            ({"layersync_lambda": 0.7}, {"layersync_preset": "lora"}, {"layersync_preset": "lora"}),
            (
                {"layersync_preset": "lora"},
                {"reg_weight": "0.3"},
                {"layersync_lambda": "0.3"},
            ),
            ({"encoder_depth": 2}, {"loss_type": "layer_sync"}, {"layersync_student_block": 2}),
            ({"encoder_depth": 2, "loss_type": "l2"}, {"encoder_depth": "5"}, {"layersync_student_block": "5"}),
            ({"loss_type": "layer_sync", "reg_weight": 1}, {"loss_type": "l2"}, {"reg_weight": 1, "loss_type": "l2"}),
            ({"loss_type": "layer_sync"}, {"layersync_enabled": "false"}, {"layersync_enabled": "false"}),
            ({"--layersync-lambda": 1}, {"layersync_lambda": "2"}, {"layersync_lambda": "2"}),
            ({"layersync_lambda": 1}, {"layersync_lambda": None}, {"layersync_lambda": 1}),
            ({"layersync": "a note"}, {"layersync_enabled": "true"}, {"layersync": "a note"}),
            ({"train": {"layersync_lambda": 1}}, {"layersync_enabled": "false"}, {"layersync_enabled": "false"}),
        ],
    )
    def test_win(self, file: dict[str, Any], flags: dict[str, Any], expected: dict[str, Any]) -> None:
        found = merged(file, flags)
        assert {key: found.get(key) for key in expected} == expected
        if "layersync_preset" in flags:
            assert "layersync_lambda" not in found


class TestKeysOfAPlugin:
    @pytest.mark.parametrize(
        ("given", "said"),
        [
            ({"crepa": {"weight": 1}}, "crepa is a section, .* as crepa_weight"),
            ({"CREPA": {"crepa_enabled": True, "weight": 1}}, "CREPA is a section, .* as crepa_enabled, crepa_weight"),
            ({"Crepa_Weight": 1}, "Crepa_Weight would do nothing; the setting is crepa_weight"),
        ],
    )
    def test_where_they_would_do_nothing_are_refused(self, given: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            refuse_other_case(given, "crepa_")

    @pytest.mark.parametrize(
        "given",
        [
            {"crepa_weight": 1},
            {"crepa": {}},
            {"crepa": "a note"},
            {"crepa": {"enabled": False, "weight": 1}},
            {"model": {"weight": 1}},
        ],
        ids=str,
    )
    def test_what_asks_for_nothing_is_left_alone(self, given: dict[str, Any]) -> None:
        refuse_other_case(given, "crepa_")


class TestSettingsOverOthers:
    @pytest.mark.parametrize(
        ("base", "given", "result"),
        [
            ({"layersync_pairs": [[1, 2]], "lr": 1}, {STUDENT: 3}, {STUDENT: 3, "lr": 1}),
            ({STUDENT: 1, TEACHER: 2, "lr": 1}, {"layersync_pairs": [[3, 4]]}, {"layersync_pairs": [[3, 4]], "lr": 1}),
            ({STUDENT: 1, TEACHER: 2}, {STUDENT: 3}, {STUDENT: 3, TEACHER: 2}),
            ({"layersync_lambda": 1}, {"layersync_preset": "lora"}, {"layersync_preset": "lora"}),
            ({"layersync_preset": "lora", "lr": 1}, {"layersync_lambda": 1}, {"layersync_lambda": 1, "lr": 1}),
            ({"layersync_preset": "lora"}, {"lr": 2}, {"layersync_preset": "lora", "lr": 2}),
        ],
    )
    def test_the_given_ones_replace_what_they_exclude(self, base: Any, given: Any, result: Any) -> None:
        assert overlay(base, given) == result
