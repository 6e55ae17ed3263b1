"""What stands against a release."""

from __future__ import annotations

from pathlib import Path

import pytest

from release.__main__ import main
from release.errors import ReleaseError
from release.refusals import git, refuse


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository that may be released as 0.1.0."""
    (tmp_path / "layersync_core").mkdir()
    (tmp_path / "layersync_core/__init__.py").write_text('__version__ = "0.1.0"\n')
    (tmp_path / "CITATION.cff").write_text("version: 0.1.0\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.1.0 - 2026-01-01\n\n- The first.\n")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def commit(root: Path) -> None:
    git(root, "add", "--all")
    name = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false"]
    git(root, *name, "commit", "--quiet", "--message", "A change")


def test_a_clean_checkout_is_good(checkout: Path) -> None:
    assert refuse(checkout) == "0.1.0"


def test_a_changed_one_is_not(checkout: Path) -> None:
    (checkout / "new.py").touch()
    with pytest.raises(ReleaseError, match=r"the checkout has 1 changed or new files \(\?\? new.py\); commit them"):
        refuse(checkout)


def test_a_tagged_version_is_not(checkout: Path) -> None:
    git(checkout, "tag", "v0.1.0")
    with pytest.raises(ReleaseError, match=r"0\.1\.0 is released: the tag v0\.1\.0 exists"):
        refuse(checkout)
    assert refuse(checkout, tagged=True) == "0.1.0"


def test_where_the_tag_must_be_it_must_be_here(checkout: Path) -> None:
    with pytest.raises(ReleaseError, match=r"the tag v0\.1\.0 must be at this commit, \w{12}, and does not exist"):
        refuse(checkout, tagged=True)
    git(checkout, "tag", "v0.1.0")
    (checkout / "new.py").touch()
    commit(checkout)
    with pytest.raises(ReleaseError, match=r"must be at this commit, \w{12}, and is at \w{12}"):
        refuse(checkout, tagged=True)


@pytest.mark.parametrize("text", ["# Changelog\n\n## Unreleased\n\n- It.\n", "## 0.1.0\n\n## 0.0.9\n\n- Old.\n"])
def test_a_version_that_the_changelog_lacks_is_not(checkout: Path, text: str) -> None:
    (checkout / "CHANGELOG.md").write_text(text)
    commit(checkout)
    with pytest.raises(ReleaseError, match=r"CHANGELOG.md has no section 0\.1\.0"):
        refuse(checkout)


def test_a_version_that_the_citation_lacks_is_not(checkout: Path) -> None:
    (checkout / "CITATION.cff").write_text("version: 0.0.9\n")
    commit(checkout)
    with pytest.raises(ReleaseError, match=r"CITATION.cff has version 0\.0\.9, the distributions 0\.1\.0"):
        refuse(checkout)


def test_a_refusal_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refused(tagged: bool) -> str:
        raise ReleaseError("not today")

    monkeypatch.setattr("release.__main__.refuse", refused)
    assert main(["all", "--output", str(tmp_path / "dist")]) == 2
    assert capsys.readouterr() == ("", "release: not today\n")
    assert not (tmp_path / "dist").exists()
