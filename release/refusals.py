"""What stands against a release, found before anything is built."""

from __future__ import annotations

import subprocess
from pathlib import Path

from release.distributions import ROOT
from release.errors import ReleaseError
from release.version import changes, cited_version, read_version


def refuse(root: Path = ROOT, tagged: bool = False) -> str:
    """Return the version that may be released.

    Args:
        root: The checkout.
        tagged: The version's tag is pushed already, and must be that of this commit.

    Raises:
        ReleaseError: The checkout has changes, the version is tagged already (or is not, where it must be), or the
            changelog or the citation does not have it.
    """
    version = read_version(root)
    if changed := git(root, "status", "--porcelain").splitlines():
        raise ReleaseError(f"the checkout has {len(changed)} changed or new files ({changed[0].strip()}); commit them")
    tag, here = f"v{version}", git(root, "rev-parse", "HEAD")
    at = git(root, "rev-list", "-n", "1", tag) if git(root, "tag", "--list", tag) else None
    if tagged and at != here:
        where = f"is at {at[:12]}" if at else "does not exist"
        raise ReleaseError(f"the tag {tag} must be at this commit, {here[:12]}, and {where}")
    if not tagged and at:
        raise ReleaseError(f"{version} is released: the tag {tag} exists; set another with python -m release version")
    if not changes(version, root):
        raise ReleaseError(f"CHANGELOG.md has no section {version}; python -m release version {version} makes it")
    if cited_version(root) != version:
        raise ReleaseError(
            f"CITATION.cff has version {cited_version(root)}, the distributions {version}; "
            f"python -m release version {version} sets both"
        )
    return version


def git(root: Path, *words: str) -> str:
    """Return what a command of git prints."""
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
    if done.returncode:
        raise ReleaseError(f"git {words[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()
