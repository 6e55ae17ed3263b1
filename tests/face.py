"""The public face as type checkers read it: ``python -m tests.face`` writes ``layersync_core/__init__.pyi``."""

from __future__ import annotations

import sys
from pathlib import Path

import layersync_core

FILE = Path(__file__).parent.parent / "layersync_core" / "__init__.pyi"


def stub() -> str:
    """Return the text of the stub that the table of names asks for."""
    lines = ["# Written from the table in __init__.py by `python -m tests.face`.", ""]
    for module, names in sorted(layersync_core.FACE.items()):
        lines += [f"from layersync_core.{module} import {name} as {name}" for name in sorted(names, key=_order)]
    return "\n".join([*lines, "", "__version__: str", "FACE: dict[str, tuple[str, ...]]", ""])


def _order(name: str) -> tuple[bool, bool, str]:
    # As ruff sorts them: constants, classes, functions.
    return not name.isupper(), not name[0].isupper(), name


if __name__ == "__main__":
    sys.stdout.write(f"{FILE.write_text(stub())} characters\n")
