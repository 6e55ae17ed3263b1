"""``layersync inspect``: the blocks of a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from layersync_core import LayerSyncConfig, __version__
from layersync_core.cli import main
from tests.cli.support import Capture, error_of
from tests.startup_cases import DIT, FLUX, KANDINSKY_CUSTOM


class TestInspect:
    def test_text(self, model: str, capsys: Capture) -> None:
        assert main(["inspect", model]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        lines = [line.split() for line in printed.out.splitlines()]
        assert f"DiTTransformer2DModel: family dit (layersync-adapter-dit {__version__}), 6 blocks" in printed.out
        assert ["1", "0", "32", "transformer_blocks.0"] in lines  # from 1, from 0
        assert ["6", "5", "32", "transformer_blocks.5"] in lines
        suggested = json.loads(printed.out.splitlines()[-1])
        assert LayerSyncConfig.from_mapping(suggested).pairs

    def test_json(self, tmp_path: Path, capsys: Capture) -> None:
        (tmp_path / "config.json").write_text(json.dumps(FLUX))
        assert main(["inspect", str(tmp_path / "config.json"), "--json"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert content["family"] == "flux"
        assert [block["path"] for block in content["blocks"]] == [
            *(f"transformer_blocks.{k}" for k in range(2)),
            *(f"single_transformer_blocks.{k}" for k in range(4)),
        ]
        assert [block["index"] for block in content["blocks"]] == list(range(6))
        assert LayerSyncConfig.from_mapping(content["suggested"]).layersync_enabled

    def test_its_suggestion_passes_check(self, model: str, capsys: Capture, settings: Callable[..., str]) -> None:
        assert main(["inspect", model, "--json"]) == 0
        suggested = json.loads(capsys.readouterr().out)["suggested"]
        assert main(["check", model, "--config", settings(**suggested)]) == 0
        assert capsys.readouterr().err == ""

    def test_with_a_family(self, model: str, capsys: Capture) -> None:
        assert main(["inspect", model, "--family", "dit"]) == 0
        capsys.readouterr()
        assert "wan" in error_of(capsys, "inspect", model, "--family", "wan")
        assert "'nope'" in error_of(capsys, "inspect", model, "--family", "nope")

    def test_errors(self, tmp_path: Path, capsys: Capture) -> None:
        assert "does not exist" in error_of(capsys, "inspect", str(tmp_path / "no"))
        for content, says in (
            ("{", "JSON"),
            ("{}", "_class_name"),
            ('{"_class_name": "SiT"}', "not a class of diffusers"),
            ('{"_class_name": "Unheard"}', "no adapter knows"),
            ('{"_class_name": "OmniGenTransformer2DModel"}', "does not support OmniGen"),
            (json.dumps(DIT | {"num_layers": "six"}), "diffusers cannot build"),
            (json.dumps(DIT | {"num_layers": 0}), "does not fit"),
            (json.dumps(KANDINSKY_CUSTOM), "kandinsky5_video"),
        ):
            (tmp_path / "config.json").write_text(content)
            assert says in error_of(capsys, "inspect", str(tmp_path))
