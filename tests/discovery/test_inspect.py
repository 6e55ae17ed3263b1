"""``layersync inspect MODEL --inputs FILE``, and what the other commands make of the family auto and of its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from layersync_core.capture.discovery.found import Discovery, FoundStack
from layersync_core.cli import main
from layersync_core.errors import ConfigError
from layersync_core.families.discovered import read_adapter
from tests.discovery.classes import UNKNOWN

pytestmark = pytest.mark.usefixtures("unknown_classes")
KREA = next(item for item in UNKNOWN if item.kind.startswith("Krea2"))
FLAGS = ["--layersync_enabled", "--layersync_student_block", "2", "--layersync_teacher_block", "4"]


def command(*words: Any) -> int:
    return main([*map(str, words)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if not hasattr(diffusers, KREA.kind):
        pytest.skip(f"diffusers {diffusers.__version__} has no {KREA.kind} yet")
    config = {"_class_name": KREA.kind, **KREA.arguments}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(KREA.inputs(), tmp_path / "inputs.safetensors")
    return tmp_path


def test_it_prints_three_lines_and_saves_an_adapter(folder: Path, capsys: Any) -> None:
    file = folder / "krea2.json"
    assert command("inspect", folder, "--inputs", folder / "inputs.safetensors", "--save", file) == 0
    assert capsys.readouterr().out.splitlines() == [
        KREA.kind,
        "blocks: transformer_blocks (4)",
        "element: the tensor (last tokens)",
        "tokens: 5 to 20 of 21 in the last block, counted by img_in",
    ]
    assert command("check", folder, "--family", file, *FLAGS) == 0
    assert "student: block 2 of 4 (transformer_blocks.1)" in capsys.readouterr().out
    assert command("inspect", folder, "--family", file) == 0
    assert "family krea2 (adapter file), 4 blocks" in capsys.readouterr().out


def test_json_has_all_that_was_found(folder: Path, capsys: Any) -> None:
    assert command("inspect", folder, "--inputs", folder / "inputs.safetensors", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stacks"][0]["path"] == "transformer_blocks"
    assert found["generated"] == [[[5, 21]], [[5, 21]]]


@pytest.mark.parametrize("words", [["--inputs", "nowhere.safetensors"], ["--save", "adapter.json"]])
def test_what_cannot_be_read_or_saved_is_one_line(folder: Path, capsys: Any, words: list[str]) -> None:
    assert command("inspect", folder, *words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_forward_that_fails_says_with_what(folder: Path, capsys: Any) -> None:
    save_file({"hidden_states": torch.randn(2, 16, 4)}, folder / "inputs.safetensors")
    assert command("inspect", folder, "--inputs", folder / "inputs.safetensors") == 2
    assert f"the forward of {KREA.kind} fails with hidden_states" in capsys.readouterr().err


def test_commands_without_a_forward_point_to_the_one_that_has_it(folder: Path, capsys: Any) -> None:
    assert command("check", folder, "--family", "auto", *FLAGS) == 2
    assert "layersync inspect MODEL --inputs" in capsys.readouterr().err


def test_a_known_model_is_checked_with_its_adapter() -> None:
    assert command("check", "wan", "--family", "auto", *FLAGS) == 0


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (("stacks", 0, "depth"), "6", "stacks.0.depth: input should be a valid integer"),
        (("stacks", 0, "offset"), True, "stacks.0.offset: input should be a valid integer"),
        (("stacks", 0, "joined"), "middle", "stacks.0.joined: input should be 'all'"),
        (("stacks", 0, "nothing"), 1, "stacks.0.nothing: "),
        (("stacks",), [], "needs at least one list"),
        (("stacks",), 3, "stacks: input should be"),
        (("stacks", 1), {"path": "layers", "depth": 4}, "each only once"),
        (("measured",), "no", "measured: input should be a valid boolean"),
        (("model_class",), None, "model_class: input should be a valid string"),
        (("latents",), {"argument": "x", "axes": "BCHW"}, "latents.patch: field required"),
    ],
)
def test_a_damaged_adapter_file_is_refused_by_what_is_wrong_in_it(
    place: tuple[Any, ...], value: Any, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.json"
    data: Any = json.loads(json.dumps(Discovery("Net", (FoundStack("layers", 4, element=(0, "x")),)).as_data()))
    path.write_text(json.dumps(data))
    assert read_adapter(path).layouts[0].stacks[0].element == (0, "x")
    inner = data
    for step in place[:-1]:
        inner = inner[step]
    if isinstance(inner, list):
        inner.append(value)
    else:
        inner[place[-1]] = value
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError) as error:
        read_adapter(path)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("save_adapter", "mine.txt", "'mine.txt' isn't a name for an adapter file; it must end in .json"),
        ("save_adapter", ".json", "'.json' isn't a name for an adapter file"),
        ("save_adapter", "nowhere/mine.json", "there is no folder nowhere to write mine.json into"),
        ("family", "nowhere.json", "nowhere.json"),
    ],
)
def test_a_file_that_cannot_be_is_told_before_anything_is_started(
    key: str, value: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    family = [] if key == "family" else ["--layersync_family", "auto"]
    words = [
        "run",
        *FLAGS[:1],
        "true",
        *FLAGS[1:],
        *family,
        f"--layersync_{key}",
        value,
        "--",
        "python",
        "-c",
        "print(1)",
    ]
    assert command(*words) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert says in err
