"""``layersync new-adapter``: a class is enough for a package that passes the kit, or for a line that says why not."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from layersync_core.cli import main
from tests.cli.support import Capture, error_of
from tests.scaffold.packages import installed, its_tests, python

HERE = Path(__file__).parent
MOST_LINES = 10

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Run the command in a process, where a file of models can be imported; return the package's folder."""

    def write(name: str, model_class: str, *flags: str, code: int = 0) -> Path:
        arguments = ["new-adapter", name, "--model-class", model_class, "--output", str(tmp_path / name), *flags]
        done: subprocess.CompletedProcess[str] = python(tmp_path, "-m", "layersync_core", *arguments, more=HERE)
        assert done.returncode == code, done.stderr
        (tmp_path / "printed").write_text(done.stdout)
        return tmp_path / name

    return write


def fill_in(folder: Path, lines: dict[str, str]) -> int:
    """Write lines in place of those that begin likewise and are marked; return how many."""
    for path in folder.rglob("*.py"):
        text = path.read_text().splitlines()
        for number, line in enumerate(text):
            for begin, whole in lines.items():
                if "# FILL IN:" in line and line.strip().startswith(begin):
                    text[number] = line[: len(line) - len(line.lstrip())] + whole
        path.write_text("\n".join(text) + "\n")
    return len(lines)


# How each package is edited before its tests are run: nothing is, so far.
CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "another_mochi": ("diffusers:MochiTransformer3DModel", {}),
    "another_cogvideox": ("diffusers:CogVideoXTransformer3DModel", {}),
    "with_registers": ("somebodys_models:RegisterTransformer", {}),
    "dataclasses_out": ("somebodys_models:StreamTransformer", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_the_package_passes_the_kit(name: str, write: Write) -> None:
    model_class, lines = CLASSES[name]
    folder = write(name, model_class)
    assert fill_in(folder, lines) <= MOST_LINES
    printed = its_tests(installed(folder), more=HERE)
    # Models without gradient checkpointing leave its three checks out.
    assert re.search(r"^(14 passed|13 passed, 1 skipped|11 passed, 3 skipped)", printed, re.M), printed


def test_registers_in_front_and_text_behind(write: Write) -> None:
    folder = write("with_registers", "somebodys_models:RegisterTransformer")
    adapter = (folder / "layersync_adapter_with_registers" / "__init__.py").read_text()
    assert 'stacks=BlockStack("blocks", joined="first", offset=8)' in adapter
    assert 'embedder="patchify"' in adapter


def test_blocks_that_return_a_dataclass(write: Write) -> None:
    folder = write("streams", "somebodys_models:StreamTransformer")
    adapter = (folder / "layersync_adapter_streams" / "__init__.py").read_text()
    assert 'stacks=BlockStack("layers", element="video")' in adapter
    tiny = (folder / "layersync_adapter_streams" / "tiny.py").read_text()
    assert 'sample, axes = "latents", "BCTHW"' in tiny
    assert "patch_size=(1, 2, 2)" in tiny


def test_an_argument_that_nothing_is_found_for_is_a_line_to_fill_in(write: Write, tmp_path: Path) -> None:
    folder = write("graphs", "somebodys_models:GraphTransformer")
    printed = (tmp_path / "printed").read_text()
    (said,) = re.findall(r"^(layersync_adapter_graphs/tiny.py:(\d+): .*)$", printed, re.M)
    line = (folder / "layersync_adapter_graphs" / "tiny.py").read_text().splitlines()[int(said[1]) - 1]
    assert line.strip().startswith('"edges": None,  # FILL IN:')
    kit = its_tests(installed(folder), "-k", "knows_the_model", more=HERE)
    assert re.search(rf"is not filled in yet: .*tiny.py:{said[1]}: a value that the forward accepts", kit), kit
    lines = {
        '"edges"': '"edges": Edges(torch.eye(12)),',
        "stacks=": 'stacks="blocks",',
        "depth": "depth = 4",
    }
    assert fill_in(folder, lines) <= MOST_LINES
    tiny = folder / "layersync_adapter_graphs" / "tiny.py"
    tiny.write_text(tiny.read_text().replace("import GraphTransformer", "import Edges, GraphTransformer"))
    assert re.search(r"^11 passed, 3 skipped", its_tests(folder, more=HERE), re.M)


def test_settings_of_a_config_file_are_scaled_down(write: Write, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"_class_name": "RegisterTransformer", "in_channels": 4, "patch_size": 4, "text_dim": 2048, "colour": 1}'
    )
    folder = write("mine", "somebodys_models:RegisterTransformer", "--config", str(tmp_path / "config.json"))
    tiny = (folder / "layersync_adapter_mine" / "tiny.py").read_text()
    settings = dict(re.findall(r"^        (\w+)=(\d+),$", tiny, re.M))
    assert settings == {
        "in_channels": "4", "patch_size": "4", "text_dim": "24", "hidden_size": "32", "num_heads": "2", "depth": "4"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model_class", "says"),
    [
        ("nowhere", "it takes package.module:Class"),
        ("not_there.models:Model", "there is no module not_there"),
        ("somebodys_models:RegisterTransfomer", "did you mean RegisterTransformer"),
        ("somebodys_models:Streams", "it isn't a torch.nn.Module"),
        ("somebodys_models:NeedsAFile", "no weights are there"),
        ("somebodys_models:NeedsAnEngine", "nothing is known about its constructor's engine: Engine"),
        ("somebodys_models:NeverRuns", "its forward takes nothing that was tried: NotImplementedError: not this way"),
        ("somebodys_models:TakesNothing", "its forward takes no arguments by name"),
    ],
)
def test_what_cannot_be_begun_is_one_line_and_leaves_nothing(
    model_class: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.chdir(tmp_path)
    assert says in error_of(capsys, "new-adapter", "mine", "--model-class", model_class)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wan", "taken: Wan 2.1"),
        ("lumina2", "LayerSync refuses Lumina 2 under it, and RegisterTransformer isn't one of them"),
        ("class", "it is a Python keyword"),
        ("auto", "layersync itself uses it"),
        ("My-Model", "did you mean my_model?"),
    ],
)
def test_bad_and_taken_names(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.chdir(tmp_path)
    assert says in error_of(capsys, "new-adapter", name, "--model-class", "somebodys_models:RegisterTransformer")
    assert not [*tmp_path.iterdir()]


def test_an_existing_folder_and_a_config_of_another_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.chdir(tmp_path)
    asked = ["new-adapter", "mine", "--model-class", "somebodys_models:RegisterTransformer"]
    (tmp_path / "config.json").write_text('{"_class_name": "Other"}')
    assert "is for Other" in error_of(capsys, *asked, "--config", "config.json")
    (tmp_path / "layersync-adapter-mine").mkdir()
    assert "exists already" in error_of(capsys, *asked)


def test_a_class_of_a_family_that_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.chdir(tmp_path)
    assert main(["new-adapter", "mine", "--model-class", "somebodys_models:MMDiT"]) == 0
    assert (
        "MMDiT belongs to family sd3, whose adapter layersync-adapter-sd3 takes precedence" in capsys.readouterr().err
    )
