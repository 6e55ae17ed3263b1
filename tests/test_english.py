"""Comments, docstrings and messages are plain English: the worst of what reads as if translated is not in them."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CLEAN = ("adapters", "benchmarks", "examples", "handbook", "layersync_core", "plugins", "release")
"""Folders that have been read through; add one once it is clean."""

FOREIGN = re.compile(
    r"""
    \b(?<!there\ )(?<!There\ )(?:is|are|was|were)\s+no\s+(?!longer\b|more\b|less\b|later\b)  # for: X isn't a Y
    | \bof\s+ours\b
    | \b(?:is|are)\s+told\b
    | \b(?:samples|tokens|weights?|values?|numbers|files?|lines?|commands?)\s+an?\s+  # for: per
      (?:device|frame|sample|line|token|step)\b
    """,
    re.VERBOSE,
)
SILENT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}


def foreign(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and phrase of what reads as if translated in the comments and strings of a source."""
    text, lines = "", []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        # Neighbouring strings are one message and neighbouring comments one text, with code between others.
        is_text = token.type == tokenize.COMMENT or tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE")
        part = (
            re.sub(r"""^[A-Za-z]*["'#]+|["']+$""", " ", token.string) if is_text else "\0" * (token.type not in SILENT)
        )
        text += part
        lines += [token.start[0]] * len(part)
    for found in FOREIGN.finditer(text):
        yield lines[found.start()], found.group()


@pytest.mark.parametrize("folder", CLEAN)
def test_what_users_and_developers_read_is_plain_english(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = [
        f"{file.relative_to(ROOT)}:{line}: {phrase}" for file in files for line, phrase in foreign(file.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "# a view that is no tensor",
        'print("the name is no word")',
        '"""Return what users are told."""',
        'raise ValueError(f"{path} is no file of {kind}")',
        "# a file of ours",
        'print("a name that is "\n      f"no {kind}")',
        "# it is\n# no list",
        '"""Yield lines, a value each: two numbers a token, 4 samples a device."""',
    ],
)
def test_a_phrase_that_reads_as_if_translated_is_found(source: str) -> None:
    assert list(foreign(source))


@pytest.mark.parametrize(
    "source",
    ["# there is no file", 'print("it is no longer there")', "is_no_word = told = 1", "# a loss is no more than this"],
)
def test_plain_english_and_code_are_left_alone(source: str) -> None:
    assert not list(foreign(source))
