"""The configuration: every key, every spelling, and one-line errors for whatever else comes in."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layersync_core import ConfigError, LayerSyncConfig
from layersync_core.config import ALIASES, PRESETS
from layersync_core.schedule import Schedule

ON: dict[str, Any] = {"layersync_enabled": True}
GOOD = ON | {"layersync_student_block": 8, "layersync_teacher_block": 16}
STUDENT, TEACHER = "layersync_student_block", "layersync_teacher_block"
STEPS = ("layersync_warmup_steps", "layersync_decay_steps", "layersync_cutoff_step")


def read(**more: Any) -> LayerSyncConfig:
    return LayerSyncConfig.from_mapping(GOOD | more)


def settings_of(config: LayerSyncConfig) -> dict[str, Any]:
    """Return the settings that were given, as they are understood."""
    return config.model_dump(exclude_unset=True)


def complaint(mapping: Any) -> str:
    """Return the message of the error that a mapping gives; it is one line without pydantic's link."""
    with pytest.raises(ConfigError) as error:
        LayerSyncConfig.from_mapping(mapping)
    message = str(error.value)
    assert message
    assert len(message.splitlines()) == 1
    assert "pydantic" not in message
    return message


class TestDefaults:
    def test_nothing_given_is_off(self) -> None:
        config = LayerSyncConfig.from_mapping({})
        assert not config.layersync_enabled
        assert config.pairs == []

    def test_of_every_key(self) -> None:
        config = LayerSyncConfig.from_mapping(ON | {STUDENT: 8})
        assert config.model_dump() == {
            "layersync_enabled": True,
            "layersync_student_block": 8,
            "layersync_teacher_block": None,
            "layersync_lambda": None,
            "layersync_preset": None,
            "layersync_tokens": "target",
            "layersync_pairs": None,
            "layersync_warmup_steps": 0,
            "layersync_decay_steps": 0,
            "layersync_cutoff_step": 0,
            "layersync_log_grad_ratio": False,
        }
        assert config.weight == 0.2
        assert config.pairs == [(8, 8, 0.2)]  # without a teacher: the student itself
        assert config.schedule == Schedule(0, 0, 0)

    def test_the_page_s_example(self) -> None:
        config = LayerSyncConfig.from_mapping(
            json.loads(
                '{"layersync_enabled": true, "layersync_student_block": 8, "layersync_teacher_block": 16, '
                '"layersync_lambda": 0.2}'
            )
        )
        assert config.pairs == [(8, 16, 0.2)]

    def test_a_config_does_not_change(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            read().layersync_lambda = 3  # type: ignore[misc]


class TestEnabled:
    @pytest.mark.parametrize("value", [True, "true", "True", "1", 1, "yes", "on"])
    def test_on(self, value: Any) -> None:
        assert read(layersync_enabled=value).layersync_enabled

    @pytest.mark.parametrize("value", [False, "false", "FALSE", "0", 0, "no", "off"])
    def test_off_by_an_explicit_false(self, value: Any) -> None:
        assert not read(layersync_enabled=value).layersync_enabled

    def test_off_needs_nothing_else(self) -> None:
        assert not LayerSyncConfig.from_mapping({"layersync_enabled": False}).layersync_enabled

    def test_off_leaves_the_other_settings_in_place(self) -> None:
        """An experiment is switched off by one key, whatever the others say."""
        assert not LayerSyncConfig.from_mapping({"layersync_enabled": False, "layersync_lambda": 0}).layersync_enabled

    @pytest.mark.parametrize(
        "mapping",
        [
            {STUDENT: 8},
            {TEACHER: 8},
            {"layersync_lambda": 0.2},
            {"layersync_preset": "lora"},
            {"layersync_tokens": "target"},
            {"layersync_pairs": [[1, 2]]},
            {"layersync_warmup_steps": 0},
            {"layersync_log_grad_ratio": False},
            {STUDENT: 8, "layersync_enabled": None},
            {STUDENT: 8, "layersync_enabled": ""},
            {"--encoder-depth": 8, "layersync_lambda": 0.2},
        ],
    )
    def test_other_keys_without_it_do_nothing_and_say_so(self, mapping: dict[str, Any]) -> None:
        message = complaint(mapping)
        assert "layersync_enabled" in message
        assert "nothing" in message


class TestNotGiven:
    @pytest.mark.parametrize("value", [None, "", "  "])
    @pytest.mark.parametrize("key", sorted(set(LayerSyncConfig.model_fields) - {"layersync_enabled", STUDENT}))
    def test_null_and_empty_leave_the_default(self, key: str, value: Any) -> None:
        assert settings_of(read(**{TEACHER: None, key: value})) == ON | {STUDENT: 8}

    def test_an_unknown_key_without_a_value_is_not_given(self) -> None:
        assert settings_of(read(layersync_foo=None)) == GOOD

    def test_the_constructor_agrees(self) -> None:
        given = LayerSyncConfig(layersync_enabled=True, layersync_student_block=8, layersync_lambda=None)
        assert settings_of(given) == ON | {STUDENT: 8}


class TestBlocks:
    @pytest.mark.parametrize("value", [8, "8", " 8 ", 8.0])
    @pytest.mark.parametrize("key", [STUDENT, TEACHER])
    def test_numbers_and_their_texts(self, key: str, value: Any) -> None:
        assert getattr(read(**{key: value}), key) == 8

    @pytest.mark.parametrize("value", [0, "0"])
    def test_zero_is_a_number_and_not_missing(self, value: Any) -> None:
        assert read(layersync_student_block=value).pairs == [(0, 16, 0.2)]
        assert read(layersync_teacher_block=value).pairs == [(8, 0, 0.2)]

    @pytest.mark.parametrize("key", [STUDENT, TEACHER])
    @pytest.mark.parametrize(
        "value",
        [
            -1,
            "-1",
            8.5,
            "8.5",
            True,
            False,
            "true",
            "eight",
            "8,16",
            [8],
            {"block": 8},
            math.nan,
            math.inf,
            "٣",
            "x\ny",
        ],
    )
    def test_everything_else_is_refused_with_key_and_value(self, key: str, value: Any) -> None:
        assert f"{key} is {value!r}" in complaint(GOOD | {key: value})

    def test_every_mistake_is_told_at_once(self) -> None:
        message = complaint(GOOD | {STUDENT: -1, TEACHER: 1.5})
        assert STUDENT in message
        assert TEACHER in message


class TestWeight:
    @pytest.mark.parametrize("value", [0.5, "0.5", "5e-1", " .5 "])
    def test_numbers_and_their_texts(self, value: Any) -> None:
        assert read(layersync_lambda=value).weight == 0.5

    @pytest.mark.parametrize(
        "value", [0, 0.0, "0", "0.0", -0.0, -1, "-0.2", math.nan, "nan", math.inf, "inf", -math.inf]
    )
    def test_must_be_finite_and_above_zero(self, value: Any) -> None:
        message = complaint(GOOD | {"layersync_lambda": value})
        assert message.startswith("layersync_lambda is ")
        assert "finite and greater than 0" in message

    @pytest.mark.parametrize("value", [True, False, "much", [0.2], {"weight": 0.2}])
    def test_must_be_a_number(self, value: Any) -> None:
        assert complaint(GOOD | {"layersync_lambda": value}).startswith(f"layersync_lambda is {value!r}")

    @pytest.mark.parametrize(("preset", "weight"), [("paper", 0.2), ("lora", 0.002)])
    def test_presets(self, preset: str, weight: float) -> None:
        assert PRESETS[preset] == weight
        assert read(layersync_preset=preset).pairs == [(8, 16, weight)]

    def test_a_preset_sets_the_weight_only_where_none_is_given(self) -> None:
        assert read(layersync_preset="lora", layersync_lambda=0.3).weight == 0.3

    def test_a_preset_does_not_excuse_a_weight_of_0(self) -> None:
        assert "greater than 0" in complaint(GOOD | {"layersync_preset": "lora", "layersync_lambda": 0})

    @pytest.mark.parametrize("value", ["best", "Paper", 1, True, ["paper"]])
    def test_other_presets_are_refused(self, value: Any) -> None:
        message = complaint(GOOD | {"layersync_preset": value})
        assert f"layersync_preset is {value!r}" in message
        assert "'paper' or 'lora'" in message


class TestOtherKeys:
    def test_tokens(self) -> None:
        assert read(layersync_tokens="all").layersync_tokens == "all"
        message = complaint(GOOD | {"layersync_tokens": "text"})
        assert "layersync_tokens is 'text'" in message
        assert "'target' or 'all'" in message

    @pytest.mark.parametrize("key", STEPS)
    def test_steps(self, key: str) -> None:
        assert getattr(read(**{key: "10"}), key) == 10
        for value in (-1, "-1", 1.5, True, "many", math.inf):
            assert f"{key} is {value!r}" in complaint(GOOD | {key: value})

    def test_schedule(self) -> None:
        config = read(layersync_warmup_steps=1, layersync_decay_steps=2, layersync_cutoff_step=3)
        assert config.schedule == Schedule(warmup_steps=1, decay_steps=2, cutoff_step=3)

    def test_log_grad_ratio(self) -> None:
        assert read(layersync_log_grad_ratio="true").layersync_log_grad_ratio
        assert "layersync_log_grad_ratio" in complaint(GOOD | {"layersync_log_grad_ratio": "often"})


class TestPairs:
    @pytest.mark.parametrize(
        "value", [[[8, 16], [4, 12, 0.1]], "[[8, 16], [4, 12, 0.1]]", [["8", "16"], ("4", 12, "0.1")]]
    )
    def test_with_and_without_weight(self, value: Any) -> None:
        assert LayerSyncConfig.from_mapping(ON | {"layersync_pairs": value}).pairs == [(8, 16, 0.2), (4, 12, 0.1)]

    def test_without_weight_takes_lambda_or_the_preset(self) -> None:
        pairs = ON | {"layersync_pairs": [[8, 16], [4, 12, 0.1]]}
        assert LayerSyncConfig.from_mapping(pairs | {"layersync_lambda": 0.5}).pairs == [(8, 16, 0.5), (4, 12, 0.1)]
        assert LayerSyncConfig.from_mapping(pairs | {"layersync_preset": "lora"}).pairs[0] == (8, 16, 0.002)

    @pytest.mark.parametrize("key", [STUDENT, TEACHER, "encoder_depth", "--gt-encoder-depth"])
    def test_exclude_the_block_keys(self, key: str) -> None:
        message = complaint(ON | {"loss_type": "layer_sync", "layersync_pairs": [[8, 16]], key: 0})
        assert "layersync_pairs" in message
        assert "exclude" in message

    @pytest.mark.parametrize(
        "pairs", ["[[4, 12], [4, 12]]", [[4, 12], [8, 16], ["4", 12, 0.1]], [[0, 3], [1, 3]], [[1, 0], [1, 1]]]
    )
    def test_the_same_pair_twice(self, pairs: Any) -> None:
        assert "twice" in complaint(ON | {"layersync_pairs": pairs})

    def test_the_same_blocks_in_other_pairs(self) -> None:
        pairs = [[4, 12], [12, 4], [4, 13], [3, 12]]
        assert len(LayerSyncConfig.from_mapping(ON | {"layersync_pairs": pairs}).pairs) == 4

    def test_next_to_block_keys_that_are_not_given(self) -> None:
        config = LayerSyncConfig.from_mapping(ON | {"layersync_pairs": [[8, 16]], STUDENT: None, TEACHER: ""})
        assert config.pairs == [(8, 16, 0.2)]

    @pytest.mark.parametrize(
        "pair",
        [
            [],
            [8],
            [8, 16, 0.1, 1],
            [True, 16],
            [8, False],
            [8, 16, True],
            [-1, 16],
            [8, "-2"],
            [8.5, 16],
            ["a", 16],
            [None, 16],
            ["", 16],
            [[8], 16],
            ["1\n2", 3],
            [8, 16, None],
            [8, 16, "much"],
            [8, 16, [0.1]],
            [8, 16, 10**400],
        ],
    )
    def test_malformed_pairs_are_shown(self, pair: Any) -> None:
        assert repr(pair) in complaint(ON | {"layersync_pairs": [[1, 2], pair]})

    @pytest.mark.parametrize("weight", [0, -0.1, math.nan, math.inf, "nan", "0"])
    def test_weights_must_be_finite_and_above_zero(self, weight: Any) -> None:
        message = complaint(ON | {"layersync_pairs": [[8, 16, weight]]})
        assert "greater than 0" in message
        assert repr([8, 16, weight]) in message

    @pytest.mark.parametrize(
        "value", [[], "[]", "8,16", "[[8, 16]", {"8": 16}, "{}", 8, True, [8, 16], [None], "[" * 99_999]
    )
    def test_anything_but_a_list_of_pairs_is_refused(self, value: Any) -> None:
        assert "layersync_pairs" in complaint(ON | {"layersync_pairs": value})


class TestSpellings:
    @pytest.mark.parametrize("prefix", ["", "--"])
    @pytest.mark.parametrize("separator", ["_", "-"])
    def test_prefix_and_hyphens_of_every_key(self, prefix: str, separator: str) -> None:
        plain = GOOD | {
            "layersync_lambda": 0.3,
            "layersync_preset": "lora",
            "layersync_tokens": "all",
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
    """Hosts have keys of these names, with other meanings: they count beside ``loss_type: layer_sync`` alone."""

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
            {"layers": 3, "sync_layers": True, "layer_decay": 0.1, "relayer_sync": 1},
            {"trackers": {"layersync_run": "x"}},  # what a host notes of ours beside our own settings
            {"sections": [[{"a": {"b": {"c": {}}}}]]},
        ],
    )
    def test_the_host_s_own_are_left_alone(self, host: dict[str, Any]) -> None:
        assert settings_of(read(**host)) == GOOD

    def test_a_section_that_holds_itself(self) -> None:
        section: dict[str, Any] = {}
        section["again"] = [section]
        assert settings_of(LayerSyncConfig.from_mapping({"section": section})) == {}


class TestFromJson:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "settings.json"

    def complaint(self, path: Path | str) -> str:
        with pytest.raises(ConfigError) as error:
            LayerSyncConfig.from_json(path)
        message = str(error.value)
        assert len(message.splitlines()) == 1
        return message

    @pytest.mark.parametrize("as_type", [str, Path])
    def test_reads_what_from_mapping_reads(self, file: Path, as_type: Any) -> None:
        file.write_text(json.dumps({"--loss-type": "layer_sync", "--encoder-depth": "8", "lr": 1e-4, "x": None}))
        assert settings_of(LayerSyncConfig.from_json(as_type(file))) == ON | {STUDENT: 8}

    def test_a_byte_order_mark(self, file: Path) -> None:
        file.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
        assert settings_of(LayerSyncConfig.from_json(file)) == GOOD

    def test_missing(self, file: Path) -> None:
        assert str(file) in self.complaint(file)

    def test_a_directory(self, tmp_path: Path) -> None:
        assert str(tmp_path) in self.complaint(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b'{"layersync_enabled": true,',
            b"{'a': 1}",
            b"{} {}",
            b"\xff\xfe{}",
            b"layersync_enabled: true",
            b"[" * 100000,
            b'{"layersync_student_block": ' + b"9" * 5000 + b"}",
        ],
        ids=str,
    )
    def test_torn(self, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        message = self.complaint(file)
        assert str(file) in message
        assert "JSON" in message

    @pytest.mark.parametrize("content", ["[]", "3", "null", '"layersync_enabled"', "true"])
    def test_no_object(self, file: Path, content: str) -> None:
        file.write_text(content)
        message = self.complaint(file)
        assert str(file) in message
        assert "object" in message

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1", "0"])
    def test_weights_that_json_can_hold(self, file: Path, number: str) -> None:
        text = json.dumps(GOOD | {"layersync_lambda": 12345}).replace("12345", number)
        file.write_text(text)
        assert "finite and greater than 0" in self.complaint(file)

    @pytest.mark.parametrize(
        ("content", "key"),
        [
            ('{"layersync_enabled": true, "lr": 1, "layersync_enabled": false}', "layersync_enabled"),
            ('{"lr": 1, "lr": 1}', "lr"),
            ('{"a": [{"b": 1, "b": 2}]}', "b"),
        ],
    )
    def test_a_key_twice(self, file: Path, content: str, key: str) -> None:
        file.write_text(content)
        message = self.complaint(file)
        assert str(file) in message
        assert f"the key {key!r} twice" in message

    def test_a_line_break_in_the_path(self, tmp_path: Path) -> None:
        self.complaint(tmp_path / "a\nb.json")


def _spelt(key: str) -> st.SearchStrategy[str]:
    return st.sampled_from([key, f"--{key}", key.replace("_", "-"), f"--{key.replace('_', '-')}"])


KEYS = st.sampled_from([*LayerSyncConfig.model_fields, *ALIASES, "loss_type", "layersync_x", "lr"]).flatmap(_spelt)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 30)
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "8", "0.2", "true", "paper", "all", "[[1, 2]]", "layer_sync", "x\ny"])
    | st.text(max_size=5)
)
VALUES = SCALARS | st.lists(SCALARS | st.lists(SCALARS, max_size=4), max_size=3) | st.dictionaries(st.text(), SCALARS)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, VALUES, max_size=6), st.booleans())
def test_whatever_comes_in_is_a_config_that_works_or_one_line(mapping: dict[str, Any], enabled: bool) -> None:
    if enabled:
        mapping = ON | {STUDENT: 8} | mapping
    try:
        config = LayerSyncConfig.from_mapping(mapping)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        return
    if config.layersync_enabled:
        assert config.pairs
        for student, teacher, weight in config.pairs:
            assert (type(student), type(teacher), type(weight)) == (int, int, float)
            assert min(student, teacher) >= 0
            assert 0 < weight < math.inf
    assert 0 <= config.schedule.factor(5) <= 1
