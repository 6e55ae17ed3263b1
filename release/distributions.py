"""The distributions of this repository, as their pyproject.toml files describe them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Distribution:
    """One distribution: core, an adapter or a plugin."""

    folder: Path
    project: dict[str, Any]
    """The table ``[project]``."""

    @property
    def name(self) -> str:
        """The name on an index, such as ``layersync-adapter-dit``."""
        return str(self.project["name"])

    @property
    def dependencies(self) -> list[str]:
        """What it requires, extras included."""
        extras = self.project.get("optional-dependencies", {}).values()
        return [*self.project["dependencies"], *(line for extra in extras for line in extra)]

    @property
    def families(self) -> list[str]:
        """The model families of its adapters."""
        return sorted(self.project.get("entry-points", {}).get("layersync.adapters", {}))

    @property
    def plugins(self) -> list[str]:
        """The names of its plugins."""
        return sorted(self.project.get("entry-points", {}).get("layersync.plugins", {}))


def distributions(root: Path = ROOT) -> list[Distribution]:
    """Return core, then every adapter, then every plugin."""
    folders = [
        root,
        *(file.parent for kind in ("adapters", "plugins") for file in sorted(root.glob(f"{kind}/*/pyproject.toml"))),
    ]
    return [Distribution(folder, _toml(folder / "pyproject.toml")["project"]) for folder in folders]


def dependency_group(name: str, root: Path = ROOT) -> list[str]:
    """Return the requirements of a dependency group of the root, the groups that it includes among them."""
    groups = _toml(root / "pyproject.toml")["dependency-groups"]
    lines: list[str] = []
    for entry in groups[name]:
        lines += [entry] if isinstance(entry, str) else dependency_group(entry["include-group"], root)
    return lines


def _toml(file: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    return table
