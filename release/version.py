"""The one version of all distributions: where it is written, and one command that sets it everywhere."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

from packaging.version import InvalidVersion, Version

from release.distributions import ROOT
from release.errors import ReleaseError

# Every pyproject.toml takes its version from this file, so no other one has it.
_MODULE = ("layersync_core/__init__.py", re.compile(r'^(__version__ = ")([^"]+)(")$', re.MULTILINE))
_CITATION = ("CITATION.cff", re.compile(r"^(version: )(\S+)()$", re.MULTILINE))
_DATE = ("CITATION.cff", re.compile(r'^(date-released: ")([^"]+)(")$', re.MULTILINE))
_UNRELEASED = "## Unreleased\n"


def read_version(root: Path = ROOT) -> str:
    """Return the version that every distribution has."""
    return _read(root, *_MODULE)


def cited_version(root: Path = ROOT) -> str:
    """Return the version that CITATION.cff has."""
    return _read(root, *_CITATION)


def set_version(text: str, root: Path = ROOT, today: date | None = None) -> str:
    """Set the version everywhere, and give it what the changelog has under Unreleased; return it as written.

    Raises:
        ReleaseError: The version is not one, is not newer, or nothing stands under Unreleased.
    """
    try:
        version = Version(text)
    except InvalidVersion:
        raise ReleaseError(f"version: {text!r} is not a version; write one such as 0.2.0") from None
    now, day = read_version(root), today or date.today()
    if version < Version(now):
        raise ReleaseError(f"version: {version} is older than {now}, which the distributions have")
    changelog = root / "CHANGELOG.md"
    if not changes("Unreleased", root) and not changes(str(version), root):
        raise ReleaseError(f"{changelog.name}: nothing stands under Unreleased; write there what {version} changes")
    if changes("Unreleased", root):
        written = changelog.read_text(encoding="utf-8")
        heading = f"{_UNRELEASED}\n## {version} - {day.isoformat()}\n"
        changelog.write_text(written.replace(_UNRELEASED, heading, 1), encoding="utf-8")
    for (name, pattern), value in ((_MODULE, version), (_CITATION, version), (_DATE, day.isoformat())):
        file = root / name
        file.write_text(pattern.sub(rf"\g<1>{value}\g<3>", file.read_text(encoding="utf-8"), count=1), encoding="utf-8")
    return str(version)


def changes(heading: str, root: Path = ROOT) -> str:
    """Return what the changelog says under a version or Unreleased; empty where it has no such section."""
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(heading)}(?: - \S+)?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return section[1].strip() if section else ""


def _read(root: Path, name: str, pattern: re.Pattern[str]) -> str:
    found = pattern.search((root / name).read_text(encoding="utf-8"))
    if found is None:
        raise ReleaseError(f"{name}: no version is written there")
    return found[2]
