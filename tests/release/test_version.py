"""One version for all distributions, and the command that sets it."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from layersync_core import __version__
from release.__main__ import main
from release.distributions import ROOT, Distribution, distributions
from release.errors import ReleaseError
from release.version import changes, cited_version, read_version, set_version

CHANGELOG = "# Changelog\n\n## Unreleased\n\n### Added\n\n- A thing.\n\n## 0.1.0 - 2026-01-01\n\n- The first.\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that have a version, at 0.1.0."""
    (tmp_path / "layersync_core").mkdir()
    (tmp_path / "layersync_core/__init__.py").write_text('"""Core."""\n\n__version__ = "0.1.0"\n')
    (tmp_path / "CITATION.cff").write_text('cff-version: 1.2.0\nversion: 0.1.0\ndate-released: "2026-01-01"\n')
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)
    return tmp_path


@pytest.mark.parametrize("distribution", distributions(), ids=lambda it: it.name)
def test_every_distribution_has_cores(distribution: Distribution) -> None:
    text = (distribution.folder / "pyproject.toml").read_text()
    assert "version" in distribution.project["dynamic"]
    path = text.split("[tool.hatch.version]\npath = ")[1].split("\n")[0].strip('"')
    assert (distribution.folder / path).resolve() == ROOT / "layersync_core/__init__.py"


def test_it_is_written_in_two_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    assert read_version() == cited_version() == __version__


def test_one_command_sets_it_everywhere(checkout: Path) -> None:
    assert set_version("0.2.0rc1", checkout, date(2026, 2, 3)) == "0.2.0rc1"
    assert (checkout / "layersync_core/__init__.py").read_text() == '"""Core."""\n\n__version__ = "0.2.0rc1"\n'
    citation = 'cff-version: 1.2.0\nversion: 0.2.0rc1\ndate-released: "2026-02-03"\n'
    assert (checkout / "CITATION.cff").read_text() == citation
    assert changes("0.2.0rc1", checkout) == "### Added\n\n- A thing."
    assert changes("Unreleased", checkout) == ""
    assert changes("0.1.0", checkout) == "- The first."


def test_a_second_time_changes_nothing(checkout: Path) -> None:
    set_version("0.2.0", checkout, date(2026, 2, 3))
    before = (checkout / "CHANGELOG.md").read_text()
    set_version("0.2.0", checkout, date(2026, 2, 3))
    assert (checkout / "CHANGELOG.md").read_text() == before


@pytest.mark.parametrize(("text", "why"), [("soon", "'soon' is not a version"), ("0.0.9", "0.0.9 is older than 0.1.0")])
def test_what_is_not_a_newer_version_is_refused(checkout: Path, text: str, why: str) -> None:
    with pytest.raises(ReleaseError, match=why):
        set_version(text, checkout)
    assert read_version(checkout) == cited_version(checkout) == "0.1.0"


def test_a_version_without_changes_is_refused(checkout: Path) -> None:
    (checkout / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.1.0\n\n- The first.\n")
    with pytest.raises(ReleaseError, match=r"nothing stands under Unreleased; write there what 0\.2\.0 changes"):
        set_version("0.2.0", checkout)
