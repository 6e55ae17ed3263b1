"""``layersync list-supported``: what is printed of every family."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from layersync_core import __version__, list_families
from layersync_core.cli import main
from layersync_core.cli.list_supported import families, markdown
from layersync_core.families.known import KNOWN, distribution_of
from layersync_core.families.refusals import REFUSALS
from tests import fakes
from tests.cli.support import Capture


class TestListSupported:
    def rows(self, capsys: Capture, *flags: str, code: int = 0) -> dict[str, dict[str, str]]:
        assert main(["list-supported", "--json", *flags]) == code
        rows = json.loads(capsys.readouterr().out)
        assert len({row["family"] for row in rows}) == len(rows)
        return {row["family"]: row for row in rows}

    def test_json_has_every_family(self, capsys: Capture) -> None:
        rows = self.rows(capsys)
        assert set(rows) >= {*KNOWN, *REFUSALS}
        assert rows["dit"] == {
            "family": "dit",
            "models": "DiT, SiT",
            "distribution": "layersync-adapter-dit",
            "version": __version__,
            "state": "installed",
            "detail": "",
        }
        assert {family for family, row in rows.items() if row["state"] == "installed"} == set(list_families())
        for family, refusal in REFUSALS.items():
            assert (rows[family]["state"], rows[family]["detail"]) == ("refused", refusal.reason)
        for family, row in rows.items():
            if row["state"] == "not installed":
                assert row["detail"] == f"pip install {row['distribution']}"
                assert row["distribution"] == distribution_of(family)

    def test_text_has_a_line_for_each(self, capsys: Capture) -> None:
        assert main(["list-supported"]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        lines = printed.out.splitlines()
        assert lines[0].split() == ["family", "models", "distribution", "version", "state"]
        assert [line.split()[0] for line in lines[2:]] == [row.family for row in families()]
        column = lines[0].index("state")
        for line, row in zip(lines[2:], families(), strict=True):
            assert line[column:].startswith(row.state)

    def test_plain_imports_no_adapter(self, install: Callable[..., Path], capsys: Capture) -> None:
        install(fakes.broken("somebodys", "somebodys_family", "raise SystemExit('imported')"))
        row = self.rows(capsys)["somebodys_family"]
        assert (row["distribution"], row["version"], row["state"]) == ("somebodys", "9.8", "installed")

    def test_who_provides_a_refused_family(self, install: Callable[..., Path], capsys: Capture) -> None:
        install(fakes.adapter("somebodys", "kolors", "UNet2DConditionModel"))
        row = self.rows(capsys)["kolors"]
        assert (row["models"], row["distribution"], row["state"]) == ("Kolors", "somebodys", "installed")

    def test_two_that_claim_one_family(self, install: Callable[..., Path], capsys: Capture) -> None:
        install(fakes.adapter("somebodys-dit", "dit", "DiT"))
        row = self.rows(capsys)["dit"]
        assert row["state"] == "conflict"
        assert row["distribution"] == "layersync-adapter-dit and somebodys-dit"

    def test_left_out(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        monkeypatch.setenv("LAYERSYNC_LOAD", "wan")
        rows = self.rows(capsys)
        assert rows["wan"]["state"] == "installed"
        assert rows["dit"]["state"] == "excluded"
        assert "LAYERSYNC_LOAD" in rows["dit"]["detail"]

    def test_check_runs_the_tiny_models(self, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
        monkeypatch.setenv("LAYERSYNC_LOAD", "dit,flux,wan")
        rows = self.rows(capsys, "--check")
        for family in ("dit", "flux", "wan"):
            assert rows[family]["state"] == "installed"
            assert rows[family]["detail"].startswith("works")

    @pytest.mark.parametrize(
        ("source", "says"),
        [
            ("import a_package_that_is_missing", "a_package_that_is_missing"),
            ("raise SystemExit(3)", "SystemExit"),
            ("raise RuntimeError('one\\ntwo')", "RuntimeError: one"),
        ],
    )
    def test_check_shows_the_error_of_a_broken_one(
        self, source: str, says: str, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        install(fakes.broken("somebodys", "somebodys_family", source))
        monkeypatch.setenv("LAYERSYNC_LOAD", "dit,somebodys_family")
        rows = self.rows(capsys, "--check", code=2)
        assert rows["somebodys_family"]["state"] == "broken"
        assert says in rows["somebodys_family"]["detail"]
        assert rows["dit"]["state"] == "installed"
        assert main(["list-supported", "--check"]) == 2
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("somebodys_family")]
        assert says in line

    def test_check_needs_the_two_functions_alone(
        self, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        site = install(
            fakes.adapter("somebodys", "somebodys_family", "DiTTransformer2DModel", stacks="transformer_blocks")
        )
        functions = "from layersync_adapter_dit.tiny import example_inputs, tiny_model"
        fakes.add_tiny(site, functions)
        monkeypatch.setenv("LAYERSYNC_LOAD", "somebodys_family")
        assert self.rows(capsys, "--check")["somebodys_family"]["detail"].startswith("works")

    def test_check_of_a_tiny_model_that_fails_in_several_lines(
        self, install: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        """The listing stays one line a family."""
        site = install(fakes.adapter("somebodys", "somebodys_family", "X"))
        fakes.add_tiny(site, "def tiny_model(): raise RuntimeError('one\\ntwo')")
        monkeypatch.setenv("LAYERSYNC_LOAD", "somebodys_family")
        assert "one" in self.rows(capsys, "--check", code=2)["somebodys_family"]["detail"]
        assert main(["list-supported", "--check"]) == 2
        assert len(capsys.readouterr().out.splitlines()) == len(families()) + 2

    def test_markdown_is_the_same_everywhere(self, monkeypatch: pytest.MonkeyPatch) -> None:
        here = markdown(families())
        monkeypatch.setattr("layersync_core.families.registry.installed", dict)
        assert markdown(families()) == here
        assert len(here.splitlines()) == 2 + len(KNOWN) + len(REFUSALS)

    def test_in_a_process_without_torch(self) -> None:
        program = (
            "import sys; from layersync_core.cli import main; code = main(['list-supported'])\n"
            "heavy = ('torch', 'diffusers', 'huggingface_hub', 'typer', 'pydantic')\n"
            "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.stderr == "[]\n"
