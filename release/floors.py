"""The oldest versions that the distributions allow: ``tox -e lowest`` installs these and runs the tests."""

from __future__ import annotations

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from release.distributions import ROOT, distributions
from release.errors import ReleaseError


def floors(root: Path = ROOT) -> dict[str, str]:
    """Return the lower bound of each third-party package, the highest where several distributions have one.

    Raises:
        ReleaseError: A requirement has no lower bound, so nothing says what it works with.
    """
    found: dict[str, Version] = {}
    every = distributions(root)
    ours = {canonicalize_name(it.name) for it in every}
    for distribution in every:
        for line in distribution.dependencies:
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            if name in ours:
                continue
            bounds = [Version(it.version) for it in requirement.specifier if it.operator in (">=", "==", "~=")]
            if not bounds:
                raise ReleaseError(f"{distribution.name}: {line!r} has no lower bound; write {name}>=VERSION")
            found[name] = max([*bounds, *([found[name]] if name in found else [])])
    return {name: str(version) for name, version in sorted(found.items())}


def requirements(root: Path = ROOT) -> str:
    """Return a requirements file of pip: every distribution as it stands here, and each floor as the only version."""
    lines = [f"-e {distribution.folder}" for distribution in distributions(root)]
    return "\n".join([*lines, *(f"{name}=={version}" for name, version in floors(root).items()), ""])
