"""Packages that commands wrote: as if they were installed, and their own tests in a process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def installed(folder: Path) -> Path:
    """Make a package's folder look as pip leaves it when it is installed for development; return it."""
    project = (folder / "pyproject.toml").read_text()
    (name,) = re.findall(r'^name = "(.*)"', project, re.M)
    (group, entry, value) = re.findall(r'^\[project\.entry-points\."(.*)"\]\n(\w+) = "(.*)"', project, re.M)[0]
    info = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry} = {value}\n")
    return folder


def python(folder: Path, *arguments: str, more: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in a package's folder, which it sees as installed.

    Args:
        folder: The package's folder.
        arguments: Of Python.
        more: A further folder to import from.
    """
    path = [str(folder), *([str(more)] if more else []), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def its_tests(folder: Path, *arguments: str, more: Path | None = None) -> str:
    """Run a package's own tests and return what pytest printed."""
    done = python(folder, "-m", "pytest", "-p", "no:cacheprovider", "-q", "tests", *arguments, more=more)
    return done.stdout + done.stderr
