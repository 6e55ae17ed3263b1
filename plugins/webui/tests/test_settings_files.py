"""A trainer's configuration files: LayerSync's settings are read and changed, and everything else stays as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from layersync_core import ConfigError, plain, same_value
from layersync_plugin_webui.settings_files import SettingsFile
from layersync_plugin_webui.settings_files.file import LARGEST
from layersync_plugin_webui.settings_files.members import Cut

SIMPLETUNER = """{
    "--model_family": "flux",
    "--learning_rate": 1e-4,
    "--layersync_enabled": true,
    "--layersync_student_block": 8,
    "--layersync_lambda": 0.20,
    "--reg_weight": 0.5,
    "--encoder_depth": 3,
    "--resolution": 1024.0,
    "--caption": "caf\\u00e9 \\/ h\\u00f4tel",
    "--data": {"a":[1,  2],
       "layers": null}
}
"""


class TestReading:
    def test_only_ours_under_one_spelling(self) -> None:
        assert SettingsFile.read(SIMPLETUNER).values == {
            "layersync_enabled": True,
            "layersync_student_block": 8,
            "layersync_lambda": 0.2,
        }

    @pytest.mark.parametrize(
        "key", ["layersync_lambda", "--layersync_lambda", "--layersync-lambda", "layersync-lambda"]
    )
    def test_every_spelling_is_one_field(self, key: str) -> None:
        assert SettingsFile.read(json.dumps({key: 0.3})).values == {"layersync_lambda": 0.3}

    def test_a_plugin_s_settings_are_ours(self) -> None:
        text = '{"--crepa_enabled": true, "--crepa_lambda": 0.4, "seed": 1, "crepa_no_such": 2}'
        assert set(SettingsFile.read(text).values) == {"crepa_enabled", "crepa_lambda", "crepa_no_such"}

    def test_what_is_null_is_not_given(self) -> None:
        assert SettingsFile.read('{"layersync_lambda": null, "layersync_tokens": ""}').values == {}

    def test_the_authors_spellings_beside_their_switch(self) -> None:
        text = '{"loss_type": "layer_sync", "encoder_depth": 8, "reg_weight": 0.5}'
        assert SettingsFile.read(text).values == {
            "layersync_enabled": True,
            "layersync_student_block": 8,
            "layersync_lambda": 0.5,
        }

    def test_yaml_and_toml_by_the_ending(self) -> None:
        wanted = {"layersync_lambda": 0.5}
        assert SettingsFile.read("seed: 1\nlayersync_lambda: 0.5\n", "a.yaml").values == wanted
        assert SettingsFile.read("seed = 1\nlayersync_lambda = 0.5\n", "a.toml").values == wanted

    def test_a_byte_order_mark(self) -> None:
        assert SettingsFile.from_bytes(b'\xef\xbb\xbf{"layersync_lambda": 1}').values == {"layersync_lambda": 1}

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "not valid JSON"),
            ("{", "not valid JSON"),
            ('{"a": 1,}', "not valid JSON"),
            ('{"a": 1} x', "not valid JSON"),
            ("[1]", "expected an object"),
            ("null", "expected an object"),
            ('{"a": NaN}', "not valid JSON"),
            ('{"a": [-Infinity]}', "not valid JSON"),
            ('{"a": "\\ud800"}', "half a character"),
            ('{"\\udfff": 1}', "half a character"),
            ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "not valid JSON"),
            ('{"a": ' + '{"b": ' * 100_000 + "1" + "}" * 100_001, "not valid JSON"),
            ('{"a": ' + "1" * 10_000 + "}", "not valid JSON"),
            ('{"a": 1, "a": 2}', "twice"),
            ('{"layersync": {"enabled": true}}', "section"),
            ('{"layersync_lambda": 0.1, "--layersync-lambda": 0.2}', "two spellings"),
            ("{}" + " " * LARGEST, "characters"),
        ],
        ids=lambda value: value[:20],
    )
    def test_what_cannot_be_read_is_one_line(self, text: str, said: str) -> None:
        with pytest.raises(ConfigError, match=said) as raised:
            SettingsFile.read(text)
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 300

    @pytest.mark.parametrize("data", [b'{"a": "\xff"}', b"\x00" * (100 * 1024 * 1024)], ids=["latin", "large"])
    def test_bytes_that_cannot_be_read(self, data: bytes) -> None:
        with pytest.raises(ConfigError):
            SettingsFile.from_bytes(data)


def changed(text: str, **changes: Any) -> str:
    return SettingsFile.read(text).with_values(changes)


class TestWriting:
    def test_only_one_value_changes(self) -> None:
        after = changed(SIMPLETUNER, layersync_student_block=12)
        assert after == SIMPLETUNER.replace('student_block": 8', 'student_block": 12')

    @pytest.mark.parametrize("value", [0.2, "0.2"])
    def test_the_same_value_stays_as_it_is_written(self, value: Any) -> None:
        assert changed(SIMPLETUNER, layersync_lambda=value, layersync_enabled="yes") == SIMPLETUNER

    def test_further_ones_come_last_in_the_file_s_style(self) -> None:
        after = changed(SIMPLETUNER, layersync_teacher_block=16)
        assert after == SIMPLETUNER.replace("null}\n}", 'null},\n    "--layersync_teacher_block": 16\n}')

    def test_one_is_removed_with_its_comma(self) -> None:
        after = changed(SIMPLETUNER, layersync_lambda=None)
        assert after == SIMPLETUNER.replace('    "--layersync_lambda": 0.20,\n', "")

    def test_keys_of_the_host_are_refused(self) -> None:
        for key in ("reg_weight", "seed", "loss_type"):
            with pytest.raises(ConfigError, match=key):
                changed(SIMPLETUNER, **{key: 1})

    @pytest.mark.parametrize(
        ("text", "changes", "after"),
        [
            ("{}", {"layersync_lambda": 1}, '{"layersync_lambda": 1}'),
            ("{\n}\n", {"layersync_lambda": 1}, '{\n    "layersync_lambda": 1\n}\n'),
            ('{"a": 1}', {"layersync_lambda": 1}, '{"a": 1, "layersync_lambda": 1}'),
            ('{"a":1,"b":2}', {"layersync_lambda": 1}, '{"a":1,"b":2,"layersync_lambda":1}'),
            ('{"-a-b": 1}', {"layersync_lambda": 1}, '{"-a-b": 1, "layersync-lambda": 1}'),
            ('{\r\n\t"a": 1\r\n}', {"layersync_lambda": 1}, '{\r\n\t"a": 1,\r\n\t"layersync_lambda": 1\r\n}'),
            (
                '{\n "a": 1,\n\n "b": 2\n}',
                {"layersync_lambda": 1},
                '{\n "a": 1,\n\n "b": 2,\n "layersync_lambda": 1\n}',
            ),
            ('{ "layersync_lambda": 1 }', {"layersync_lambda": None}, "{ }"),
            ('{"layersync_lambda": 1, "b": 2}', {"layersync_lambda": None}, '{"b": 2}'),
            ('{"b": 2, "layersync_lambda": 1 }', {"layersync_lambda": None}, '{"b": 2 }'),
            ('{"layersync_lambda": null}', {"layersync_lambda": 1}, '{"layersync_lambda": 1}'),
            ('{"layersync_lambda": null}', {"layersync_lambda": None}, '{"layersync_lambda": null}'),
            (
                '{"layersync_lambda": 1, "--layersync-lambda": 1}',
                {"layersync_lambda": 2},
                '{"layersync_lambda": 2, "--layersync-lambda": 2}',
            ),
            ('{"layersync\\u005flambda": 1}', {"--layersync-lambda": 2}, '{"layersync\\u005flambda": 2}'),
            (
                '{"loss_type": "layer_sync", "encoder_depth": 8}',
                {"layersync_student_block": 9},
                '{"loss_type": "layer_sync", "encoder_depth": 9}',
            ),
            (  # without its switch encoder_depth would be the host's
                '{"loss_type": "layer_sync", "encoder_depth": 8}',
                {"layersync_enabled": False},
                '{"layersync_enabled": false, "layersync_student_block": 8}',
            ),
            (
                '{"loss_type": "layer_sync", "encoder_depth": 8, "layersync_student_block": 8}',
                {"layersync_enabled": None},
                '{"layersync_student_block": 8}',
            ),
            (
                '{"loss_type": "layer_sync", "layersync_enabled": null}',
                {"layersync_enabled": False},
                '{"layersync_enabled": false}',
            ),
            ("\ufeff{}", {"layersync_pairs": ((4, 12),)}, '\ufeff{"layersync_pairs": [[4, 12]]}'),
        ],
    )
    def test_styles(self, text: str, changes: dict[str, Any], after: str) -> None:
        assert SettingsFile.read(text).with_values(changes) == after

    @pytest.mark.parametrize("value", [float("nan"), {1, 2}, "\ud800"])
    def test_a_value_that_is_not_json(self, value: Any) -> None:
        with pytest.raises(ConfigError):
            changed("{}", layersync_lambda=value)

    @pytest.mark.parametrize(
        ("name", "text"), [("a.yml", "layersync_lambda: 1 # why"), ("a.toml", "layersync_lambda = 1")]
    )
    def test_yaml_and_toml_are_not_changed(self, name: str, text: str) -> None:
        with pytest.raises(ConfigError, match="without losing comments"):
            SettingsFile.read(text, name).with_values({"layersync_lambda": 2})


ours = st.sampled_from(["enabled", "student_block", "lambda", "tokens", "pairs"]).map("layersync_{}".format)
values = st.one_of(st.booleans(), st.integers(1, 99), st.floats(0.1, 9), st.text(min_size=1), st.just([[4, 12]]))
words = st.characters(exclude_categories=["Cs"])
hosts = st.text(words).filter(lambda key: not any(part in key.lower() for part in ("sync", "crepa", "-")))
nested = st.recursive(values | st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@settings(suppress_health_check=[HealthCheck.too_slow])  # its tables of characters, in the first example
@given(
    host=st.dictionaries(hosts, nested, max_size=5),
    before=st.dictionaries(ours, values.filter(lambda value: str(value).strip() != "")),
    changes=st.dictionaries(ours, values.filter(lambda value: str(value).strip() != "") | st.none()),
    order=st.randoms(use_true_random=False),
    indent=st.sampled_from([None, 0, 2, "\t"]),
    separators=st.sampled_from([(",", ":"), (", ", " : "), (" ,", ": ")]),
    ascii_only=st.booleans(),
    ends=st.sampled_from(["", "\n", "\r\n"]),
)
def test_only_the_edits_differ(
    host: dict[str, Any],
    before: dict[str, Any],
    changes: dict[str, Any],
    order: Any,
    indent: Any,
    separators: tuple[str, str],
    ascii_only: bool,
    ends: str,
) -> None:
    items = [*host.items(), *before.items()]
    order.shuffle(items)
    text = json.dumps(dict(items), indent=indent, separators=separators, ensure_ascii=ascii_only) + ends
    text = text if ends != "\r\n" or indent is None else text.replace("\n", ends)
    after = SettingsFile.read(text).with_values(changes)
    wanted = dict(items)
    for key, value in changes.items():
        if value is None:
            wanted.pop(key, None)
        elif key not in wanted or not same_value(key, wanted[key], value):
            wanted[key] = value
    assert json.loads(after) == wanted
    assert [key for key in json.loads(after) if key in host] == [key for key, _ in items if key in host]
    old, new = pieces(text), pieces(after)
    for key in wanted:
        if key not in changes:
            assert new[key] == old[key]
        elif key in old:
            assert new[key][0] == old[key][0]
    assert text.endswith(ends)
    if not changes:
        assert after == text


SPELLINGS = ("", "--", "-")
PLAIN = ("layersync_enabled", "layersync_student_block", "layersync_lambda", "crepa_enabled")
OTHERS = ("encoder_depth", "reg_weight", "loss_type", "seed", "layers")
spelt = st.builds(
    lambda dashes, name, hyphens: dashes + (name.replace("_", "-") if hyphens else name),
    st.sampled_from(SPELLINGS),
    st.sampled_from([*PLAIN, *OTHERS]),
    st.booleans(),
)
simple = st.sampled_from([None, "", True, False, 1, 8, 0.5, "8", "layer_sync"])


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(
    before=st.dictionaries(spelt, simple, max_size=6),
    changes=st.dictionaries(st.sampled_from(PLAIN), simple.filter(lambda value: value != "layer_sync")),
    indent=st.sampled_from([None, 2]),
)
def test_any_spellings_beside_each_other(before: dict[str, Any], changes: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(before, indent=indent)
    try:
        file = SettingsFile.read(text)
    except ConfigError:
        assume(False)
    after = SettingsFile.read(file.with_values(changes))
    for key in {*file.values, *changes}:
        if key not in changes:
            assert after.values[key] == file.values[key]
        elif changes[key] in (None, ""):
            assert key not in after.values
        else:
            assert same_value(key, after.values[key], changes[key])
    old, new = pieces(text), pieces(file.with_values(changes))
    for key in before:
        if plain(key) in OTHERS and key in new:
            assert new[key] == old[key] or before.get("loss_type") == "layer_sync" or "layer_sync" in before.values()
        if plain(key) in ("seed", "layers"):
            assert new[key] == old[key]


def pieces(text: str) -> dict[str, tuple[str, str]]:
    return {member.name: (member.key, member.value) for member in Cut.of(text).members}
