"""Files of settings in the languages that trainers write theirs in: the same keys, read as strictly."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from layersync_core import ConfigError, LayerSyncConfig
from layersync_core.files import read_settings
from tests.configs import settings_of

Write = Callable[[str, str], Path]

YAML = """
# beside the trainer's
lr: 1e-4
layersync_enabled: yes
layersync_student_block: 2
layersync_teacher_block: 4
empty:
dataset: &all {path: a}
others: [*all, *all]
"""
TOML = """
lr = 1e-4
layersync_enabled = true
layersync_student_block = 2
layersync_teacher_block = 4

[dataset]
path = "a"
"""
PAIR = {"layersync_enabled": True, "layersync_student_block": 2, "layersync_teacher_block": 4}

needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="Python's own reader of TOML")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", YAML),
        ("a.YML", "\ufeff" + YAML),
        pytest.param("a.toml", TOML, marks=needs_toml),
        ("a.json", json.dumps(PAIR)),
        ("settings", json.dumps(PAIR)),
        ("a.yaml", json.dumps(PAIR)),
    ],
)
def test_the_same_settings(write: Write, name: str, text: str) -> None:
    assert settings_of(LayerSyncConfig.from_mapping(read_settings(write(name, text)))) == PAIR


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yaml", "a: 1\nb: {c: 1, c: 2}", "has the key 'c' twice; keep one"),
        ("a.yaml", "layersync_enabled: true\nlayersync_enabled: false", "has the key 'layersync_enabled' twice"),
        ("a.yaml", "a: [1", "is not valid YAML"),
        ("a.yaml", "a: 1\n---\nb: 2", "is not valid YAML"),
        ("a.yaml", "[1]: 2", "is not valid YAML"),
        ("a.yaml", "a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("a.yaml", "", "holds a YAML NoneType; expected an object of settings"),
        ("a.yml", "- a", "holds a YAML list; expected an object of settings"),
        pytest.param("a.toml", "a = 1\na = 2", "is not valid TOML", marks=needs_toml),
        pytest.param("a.toml", "a", "is not valid TOML", marks=needs_toml),
        (
            "a.cfg",
            "layersync_enabled: true",
            r"is not valid JSON \(YAML and TOML are recognised by .yaml, .yml and .toml\)",
        ),
    ],
)
def test_what_cannot_be_read(write: Write, name: str, text: str, said: str) -> None:
    path = write(name, text)
    with pytest.raises(ConfigError, match=said) as error:
        read_settings(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "absent", "package"),
    [("a.yaml", YAML, ["yaml"], "pyyaml"), ("a.toml", TOML, ["tomllib", "tomli"], "tomli")],
)
def test_without_a_reader(
    write: Write, name: str, text: str, absent: list[str], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in absent:
        monkeypatch.setitem(sys.modules, module, None)
    path = write(name, text)
    with pytest.raises(ConfigError) as error:
        read_settings(path)
    assert str(error.value) == (f"reading {path} needs {package}; pip install {package}, or write the settings as JSON")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "layersync:\n  enabled: true\n  student_block: 2"),
        pytest.param("a.toml", "[layersync]\nenabled = true\nstudent_block = 2", marks=needs_toml),
    ],
)
def test_a_section_is_refused_as_in_json(write: Write, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match="layersync is a section, and settings in it would do nothing"):
        LayerSyncConfig.from_mapping(read_settings(write(name, text)))
