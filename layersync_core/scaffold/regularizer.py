"""The files of a new regularizer's package. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import layersync_core
from layersync_core.documentation import docs_page
from layersync_core.scaffold.names import check_regularizer, class_name, plugin_distribution
from layersync_core.scaffold.writing import check_folder, render, write_folder

_FILES = {
    "pyproject.toml": "pyproject",
    "README.md": "readme",
    "{package}/__init__.py": "init",
    "{package}/loss.py": "loss",
    "tests/test_{name}.py": "test",
}


def new_regularizer(name: str, output: Path | None = None, keys: Collection[str] = ()) -> Path:
    """Write an installable package of a regularizer whose own test passes, and return its folder.

    Args:
        name: Its name, which is the prefix of its settings.
        output: The folder to write; default: the distribution's name in the current folder.
        keys: Existing settings, with which those of the new one must not clash.

    Raises:
        ConfigError: The name cannot be used, or the folder exists or cannot be written.
    """
    check_regularizer(name, keys)
    folder = Path(plugin_distribution(name)) if output is None else output
    check_folder(folder)
    values = {
        "name": name,
        "Class": class_name(name),
        "distribution": plugin_distribution(name),
        "package": plugin_distribution(name).replace("-", "_"),
        "core": core_requirement(),
        "guide": docs_page("plugins"),
    }
    files = {path.format(**values): render("regularizer", template, values) for path, template in _FILES.items()}
    write_folder(folder, {**files, f"{values['package']}/py.typed": ""})
    return folder


def core_requirement() -> str:
    """Return the requirement on core for a package that is written now."""
    major, minor = layersync_core.__version__.split(".")[:2]
    return f"layersync-core>={major}.{minor},<{int(major) + 1}"
