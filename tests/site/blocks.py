"""The code blocks of the pages, and what is said of each in a comment right before it.

- ``<!-- run: NAME -->``: a test runs it, in the surroundings NAME of ``surroundings.py``.
- ``<!-- run by: FILE -->``: that test file reads the page and runs it.
- ``<!-- excerpt: FILE -->``: its lines stand in that file, in this order.
- ``<!-- not run: REASON -->``: why nothing can run it here.

Settings (JSON, YAML) need no comment: they are read as what they are. ``text`` is what programs print.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
    *sorted(ROOT.glob("adapters/*/README.md")),
]
SETTINGS = ("json", "yaml")
_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<kind>run|run by|excerpt|not run): (?P<detail>[^\n]*?) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)```",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A code block, and what its comment says."""

    page: Path
    line: int
    language: str
    code: str
    kind: str
    detail: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Return the words of each command of a shell's block."""
        lines = re.sub(r"\\\n", " ", self.code).splitlines()
        commands = [part for line in lines for part in re.split(r"&&|;", line)]
        return [words for command in commands if (words := shlex.split(command, comments=True))]


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page,
            text[: found.start("language")].count("\n") + 1,
            found["language"].partition(" ")[0],
            re.sub(rf"^{found['indent']}", "", found["code"], flags=re.MULTILINE),
            found["kind"] or "",
            found["detail"] or "",
        )
        for found in _BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
