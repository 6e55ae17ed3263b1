"""The configuration: every key, and one-line errors for whatever else comes in."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layersync_core import ConfigError, LayerSyncConfig
from layersync_core.config import ALIASES, PRESETS
from layersync_core.schedule import Schedule
from tests.configs import GOOD, ON, STUDENT, TEACHER, complaint, read, settings_of

STEPS = ("layersync_warmup_steps", "layersync_decay_steps", "layersync_cutoff_step")


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
            "layersync_generated_tokens": None,
            "layersync_guard": True,
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

    def test_a_mistake_is_told_in_one_clause(self) -> None:
        assert complaint(GOOD | {STUDENT: -1}) == f"{STUDENT} is -1: input should be greater than or equal to 0"

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
