"""What MODEL may be: a family, a local path or a name on the hub, and who wins where it could be several."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layersync_core import ConfigError, get_adapter, load_tiny
from layersync_core.cli import main, meta
from layersync_core.cli.meta import model_of
from layersync_core.families.known import KNOWN
from layersync_core.families.refusals import REFUSALS
from tests import fakes
from tests.cli.support import Capture, error_of
from tests.hub import Hub, environment, served
from tests.since import since
from tests.startup_cases import DIT, FLUX, GOOD

NAME = "black-forest-labs/FLUX.1-dev"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start where no local path has the name of a family."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Stand in for the hub, whose every model is a Flux; return the list of the names that it is asked for."""
    asked: list[str] = []
    file = tmp_path / "fetched.json"
    file.write_text(json.dumps(FLUX))
    monkeypatch.setattr(meta, "fetch_config", lambda name: asked.append(name) or file)
    return asked


def inspected(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main(["inspect", *arguments, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    content: dict[str, Any] = json.loads(printed.out)
    return content


class TestAFamily:
    @pytest.mark.parametrize("family", ["dit", "flux", "kandinsky5_video"])
    def test_its_tiny_model(self, family: str, hub: list[str], capsys: Capture) -> None:
        model = load_tiny(family).tiny_model()
        content = inspected(capsys, family)
        assert content["family"] == family
        assert [block["path"] for block in content["blocks"]] == [
            block.path for block in get_adapter(family).list_blocks(model)
        ]
        assert main(["inspect", family]) == 0
        assert capsys.readouterr().out.startswith(f"tiny {type(model).__name__}: family {family} (")
        assert hub == []

    def test_check(self, settings: Callable[..., str], capsys: Capture) -> None:
        assert main(["check", "dit", "--config", settings(**GOOD)]) == 0
        assert "student: block 2 of 6 (transformer_blocks.1)\n" in capsys.readouterr().out
        assert "find layer 7" in error_of(
            capsys, "check", "dit", "--config", settings(**GOOD), "--layersync_student_block", "7"
        )

    def test_that_shares_its_class_with_a_refused_one(self, settings: Callable[..., str], capsys: Capture) -> None:
        assert main(["check", "kandinsky5_video", "--config", settings(**GOOD | {"layersync_teacher_block": 3})]) == 0
        assert "family: kandinsky5_video\n" in capsys.readouterr().out

    @pytest.mark.parametrize("family", sorted(REFUSALS))
    def test_a_refused_one_ends_with_its_reason(self, family: str, capsys: Capture) -> None:
        assert error_of(capsys, "inspect", family).endswith(REFUSALS[family].reason)

    @pytest.mark.parametrize(
        ("word", "says"),
        [
            ("flx", "did you mean flux"),
            ("Flux", "did you mean flux"),
            ("FLUX", "did you mean flux"),
            ("z-image", "did you mean z_image"),
            ("FLUX.1-dev", "owner/name"),
            ("quite-another", ", ".join(sorted(KNOWN))),
        ],
    )
    @pytest.mark.parametrize("command", ["inspect", "check"])
    def test_a_word_that_is_none(
        self, word: str, says: str, command: str, hub: list[str], settings: Callable[..., str], capsys: Capture
    ) -> None:
        options = ["--config", settings(**GOOD)] if command == "check" else []
        line = error_of(capsys, command, word, *options)
        assert f"{word} is neither a local path nor a family" in line
        assert says in line
        assert hub == []

    def test_one_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        monkeypatch.setitem(KNOWN, "somebodys_family", KNOWN["dit"])
        assert "pip install layersync-adapter-somebodys-family" in error_of(capsys, "inspect", "somebodys_family")

    def test_a_third_party_s_whose_class_is_not_of_diffusers(
        self,
        install: Callable[[fakes.Distribution], Path],
        settings: Callable[..., str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: Capture,
    ) -> None:
        site = install(fakes.adapter("somebodys", "somebodys_family", "SomebodysTransformer"))
        fakes.add_tiny(site, "from tests import fakes\n"
                       "tiny_model = lambda: fakes.model('SomebodysTransformer', blocks=fakes.blocks())\n")  # fmt: skip
        assert len(inspected(capsys, "somebodys_family")["blocks"]) == 3
        assert main(["check", "somebodys_family", "--config", settings(**GOOD | {"layersync_teacher_block": 3})]) == 0
        capsys.readouterr()
        monkeypatch.setenv("LAYERSYNC_LOAD", "dit")
        assert "LAYERSYNC_LOAD leaves it out" in error_of(capsys, "inspect", "somebodys_family")

    def test_without_a_tiny_model(self, install: Callable[[fakes.Distribution], Path], capsys: Capture) -> None:
        site = install(fakes.adapter("somebodys", "somebodys_family", "SomebodysTransformer"))
        fakes.add_tiny(site, "")
        assert "cannot be built: AttributeError" in error_of(capsys, "inspect", "somebodys_family")

    def test_a_tiny_model_that_fails(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        monkeypatch.setattr(load_tiny("dit"), "tiny_model", lambda: 1 / 0)
        assert "tiny model of family dit cannot be built: ZeroDivisionError" in error_of(capsys, "inspect", "dit")

    def test_another_family_for_it(self, capsys: Capture) -> None:
        assert inspected(capsys, "dit", "--family", "dit")["family"] == "dit"
        assert "wan" in error_of(capsys, "inspect", "dit", "--family", "wan")


class TestALocalPath:
    @pytest.mark.parametrize("name", ["flux", "black-forest-labs/FLUX.1-dev", "no_family"])
    def test_wins(self, name: str, hub: list[str], capsys: Capture) -> None:
        Path(name).mkdir(parents=True)
        assert f"the folder {name} has no config.json" in error_of(capsys, "inspect", name)
        (Path(name) / "config.json").write_text(json.dumps(DIT))
        assert inspected(capsys, name)["family"] == "dit"
        assert hub == []

    def test_a_file_of_any_name(self, capsys: Capture) -> None:
        Path("flux").write_text(json.dumps(DIT))
        assert inspected(capsys, "flux")["family"] == "dit"

    @pytest.mark.parametrize(
        "name",
        [
            "./flux",
            "../flux",
            "/nowhere",
            "/no/where",
            "~/flux",
            "~flux",
            "a/b/c",
            "a/b.json",
            "flux.json",
            "a/",
            "a\\b",
        ],
    )
    def test_what_looks_like_one_is_no_other_name(self, name: str, hub: list[str], capsys: Capture) -> None:
        line = error_of(capsys, "inspect", name)
        assert "does not exist" in line
        assert "give a local model folder or its config.json" in line
        assert hub == []


class TestAHubName:
    def test_inspect_and_check(self, hub: list[str], settings: Callable[..., str], capsys: Capture) -> None:
        assert inspected(capsys, NAME)["family"] == "flux"
        assert main(["check", NAME, "--config", settings(**GOOD)]) == 0
        assert "student: block 2 of 6 (transformer_blocks.1)\n" in capsys.readouterr().out
        assert hub == [NAME, NAME]

    def test_its_model_has_no_weights(self, hub: list[str]) -> None:
        named = model_of(NAME)
        assert named.title == "FluxTransformer2DModel"
        assert all(parameter.is_meta for parameter in named.model.parameters())

    def test_settings_are_read_first(self, hub: list[str], settings: Callable[..., str], capsys: Capture) -> None:
        error_of(capsys, "check", NAME, "--config", settings(layersync_lamda=1))
        assert hub == []

    def test_a_config_that_cannot_be_had(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        def fetch_config(name: str) -> Path:
            raise ConfigError(f"{name} cannot be had")

        monkeypatch.setattr(meta, "fetch_config", fetch_config)
        assert error_of(capsys, "inspect", NAME) == f"error: {NAME} cannot be had"

    def test_the_trainer_wants_it_downloaded(self, hub: list[str], tmp_path: Path, capsys: Capture) -> None:
        line = error_of(capsys, "train", "--model", NAME, "--output_dir", str(tmp_path / "out"))
        assert f"hf download {NAME}" in line
        assert hub == []

    def run(self, home: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "layersync_core", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment(home, url))

    @since("transformers", "4.49", "it moves an old cache and says so")
    def test_in_a_process_from_a_hub(self, tmp_path: Path) -> None:
        files = {
            "model_index.json": "{}",
            "transformer/config.json": json.dumps(FLUX),
            "transformer/diffusion_pytorch_model.safetensors": "weights",
        }
        with served(Hub({NAME: files})) as hub:
            done = self.run(tmp_path, hub.url, "inspect", NAME)
            assert {request.split(f"{NAME}/")[1] for request in hub.asked} == {"config.json", "transformer/config.json"}
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("FluxTransformer2DModel: family flux (")

    @pytest.mark.parametrize(("text", "says"), [("<html>", "is not valid JSON"), ("{}", "no _class_name")])
    def test_in_a_process_a_config_that_is_none(self, text: str, says: str, tmp_path: Path) -> None:
        with served(Hub({NAME: {"config.json": text}})) as hub:
            done = self.run(tmp_path, hub.url, "inspect", NAME)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert says in line
