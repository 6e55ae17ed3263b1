"""Completion in shells, by Typer's protocol: variables in, candidates on standard output. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

from layersync_core.cli.kinds import choices

Values = Callable[[str], list[str]]
"""From what was typed of a value to the values that begin with it."""

AUTO = "auto"


def asked_command() -> str:
    """Return the command whose words are completed; empty while its own name is typed."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    words = line.split(maxsplit=2)
    return words[1] if len(words) > 2 or (len(words) == 2 and line[-1].isspace()) else ""


@contextmanager
def silent() -> Iterator[None]:
    """Keep warnings off a terminal on which somebody is typing."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        yield


def values(key: str, schema: Mapping[str, Any]) -> Values | None:
    """Return what completes the value of a setting; None where the shell's own completion of files is right."""
    if key == "family":
        return families
    if key == "layersync_family":
        return families_and_auto
    return among(found) if (found := choices(schema)) else None


def among(known: Sequence[str]) -> Values:
    """Return what completes a value that is one of a few."""
    return lambda incomplete: [value for value in known if value.startswith(incomplete)]


def families(incomplete: str) -> list[str]:
    """Return the installed families that begin with something."""
    from layersync_core.families.registry import list_families

    return among(list_families())(incomplete)


def families_and_auto(incomplete: str) -> list[str]:
    """Return the installed families, and the one that finds the blocks, that begin with something."""
    return [*among([AUTO])(incomplete), *families(incomplete)]
