"""Installs each built distribution alone beside third parties' packages, and lists and checks what it brings."""

from __future__ import annotations

import json
import os
import tempfile
import venv
from pathlib import Path

from release.building import python
from release.distributions import ROOT, Distribution, distributions
from release.errors import ReleaseError


def try_each(files: Path, root: Path = ROOT) -> None:
    """Install each distribution from a folder, with those of this repository that it requires, and try it.

    All are installed in turn into one virtual environment that has the tested versions of third parties: torch is too
    large to be installed for each.

    Raises:
        ReleaseError: One cannot be installed from the folder, or does not work.
    """
    every = distributions(root)
    with tempfile.TemporaryDirectory() as folder:
        interpreter = _environment(Path(folder), root)
        for number, distribution in enumerate(every, 1):
            said = _try(interpreter, distribution, files)
            print(f"install {number}/{len(every)}: {distribution.name}: {said}", flush=True)


def pins(root: Path = ROOT) -> list[str]:
    """Return the tested versions of third parties' packages."""
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if "==" in line and not line.startswith(("#", "-"))]


def _environment(folder: Path, root: Path) -> str:
    print("install third parties' packages", flush=True)
    venv.create(folder / "venv", with_pip=True)
    interpreter = str(folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    python(["-m", "pip", "install", "--quiet", "--no-compile", *pins(root)], interpreter, _variables())
    return interpreter


def _try(interpreter: str, distribution: Distribution, files: Path) -> str:
    pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = ["install", "--no-index", "--find-links", str(files), distribution.name]
    variables = {**_variables(), "PIP_NO_INDEX": "1"}
    python([*pip, *install], interpreter, variables)
    try:
        return _works(interpreter, distribution)
    finally:
        names = json.loads(python(["-m", "pip", "list", "--format", "json"], interpreter, variables))
        ours = [it["name"] for it in names if it["name"].startswith("layersync")]
        python([*pip, "uninstall", "--yes", *ours], interpreter, variables)


def _works(interpreter: str, distribution: Distribution) -> str:
    words = ["-m", "layersync_core", "list-supported", "--check", "--json"]
    rows = {row["family"]: row for row in json.loads(python(words, interpreter, _variables()))}
    installed = {family for family, row in rows.items() if row["state"] == "installed"}
    missing = set(distribution.families) - installed
    if missing:
        raise ReleaseError(f"{distribution.name}: list-supported does not have {', '.join(sorted(missing))}")
    for family in distribution.families:
        if "similarity" not in rows[family]["detail"]:
            raise ReleaseError(f"{distribution.name}: {family} was not tried: {rows[family]['detail']}")
    check_plugins(interpreter, distribution)
    if distribution.families:
        return f"{len(distribution.families)} families work"
    return f"plugin {', '.join(distribution.plugins)} works" if distribution.plugins else "works"


def check_plugins(interpreter: str, distribution: Distribution) -> None:
    """Load the plugins of an installed distribution.

    Raises:
        ReleaseError: One of them does not work.
    """
    if not distribution.plugins:
        return
    code = (
        "from layersync_core.cli.doctor.parts import look\n"
        "print(*(f'{part.name} {part.state} {part.detail}' for part in look() if part.about == 'plugin'), sep='\\n')"
    )
    found = python(["-c", code], interpreter, _variables())
    working = {line.split()[0] for line in found.splitlines() if line.split()[1:2] == ["good"]}
    if missing := set(distribution.plugins) - working:
        raise ReleaseError(f"{distribution.name}: {', '.join(sorted(missing))} does not work:\n{found}".rstrip())


def _variables() -> dict[str, str]:
    """Return this process's variables without those that would let Python see this environment's packages."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden and name[:10] != "LAYERSYNC_"}
