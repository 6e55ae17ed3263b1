"""The state of attachments in a file: written in one form, read in that one and the two before it."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from layersync_core import ConfigError, load_states, save_states
from layersync_core.state import STATE_FILE

WEIGHT = torch.arange(6.0).reshape(2, 3)


def state(step: int = 7, **modules: Any) -> dict[str, Any]:
    return {"version": 1, "step": step, "modules": modules}


def assert_same(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, one in found.items():
        other = expected[name]
        assert (one["version"], one["step"], one["modules"].keys()) == (1, other["step"], other["modules"].keys())
        for module, values in one["modules"].items():
            assert values.keys() == other["modules"][module].keys()
            for key, value in values.items():
                assert torch.equal(value, other["modules"][module][key])


@pytest.mark.parametrize(
    "states",
    [
        {"": state(0)},
        {"": state(crepa={"linear.weight": WEIGHT, "a/b": WEIGHT.T})},
        {"WanModel#1": state(crepa={"linear.weight": WEIGHT}, probe={}), "WanModel#2": state(9)},
    ],
)
def test_what_is_written_is_read(states: Any, tmp_path: Path) -> None:
    save_states(tmp_path, states)
    assert_same(load_states(tmp_path), states)
    save_states(tmp_path, {"": state(1)})  # over it
    assert_same(load_states(tmp_path), {"": state(1)})
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_a_full_disk_is_an_os_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    save_states(tmp_path, {"": state(1)})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_states(tmp_path, {"": state(2, crepa={"weight": torch.zeros(1000)})})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_same(load_states(tmp_path), {"": state(1)})
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_nothing_written() -> None:
    assert load_states(Path("nowhere")) is None


def test_the_earlier_form_of_a_run(tmp_path: Path) -> None:
    about = {"layersync": json.dumps({"version": 1, "step": 5})}
    tensors = {"DiT#1/crepa.linear.weight": WEIGHT, "DiT#1/crepa.a/b": WEIGHT.T.contiguous()}
    save_file(tensors, tmp_path / STATE_FILE, metadata=about)
    assert_same(load_states(tmp_path), {"DiT#1": state(5, crepa={"linear.weight": WEIGHT, "a/b": WEIGHT.T})})
    save_file({}, tmp_path / STATE_FILE, metadata=about)
    assert_same(load_states(tmp_path), {"": state(5)})


def test_the_earlier_form_of_the_trainer(tmp_path: Path) -> None:
    save_file({"crepa/linear.weight": WEIGHT}, tmp_path / STATE_FILE)
    (tmp_path / "layersync_state.json").write_text(json.dumps({"version": 1, "step": 4, "modules": ["crepa"]}))
    assert_same(load_states(tmp_path), {"": state(4, crepa={"linear.weight": WEIGHT})})


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"version": 99, "states": {}}, "isn't a state file of this version"),
        ({"version": 2}, "isn't a state file of this version"),
        ({"version": 2, "states": {"": {"step": -1, "modules": []}}}, "isn't a state file of this version"),
        ({"version": 2, "states": {"": {"step": True, "modules": []}}}, "isn't a state file of this version"),
        ({"version": 1, "step": "3"}, "isn't a state file of this version"),
        ([], "isn't a state file of this version"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_state(metadata: Any, says: str, tmp_path: Path) -> None:
    save_file({}, tmp_path / STATE_FILE, metadata=None if metadata is None else {"layersync": json.dumps(metadata)})
    with pytest.raises(ConfigError, match=says) as error:
        load_states(tmp_path)
    assert str(tmp_path / STATE_FILE) in str(error.value)


def test_a_file_cut_short(tmp_path: Path) -> None:
    save_states(tmp_path, {"": state(crepa={"w": WEIGHT})})
    (tmp_path / STATE_FILE).write_bytes((tmp_path / STATE_FILE).read_bytes()[:-5])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_states(tmp_path)
