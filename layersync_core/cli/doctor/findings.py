"""The doctor's findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["good", "note", "wrong"]
"""``note``: worth knowing, but nothing to fix."""

_MARKS: dict[State, str] = {"good": " ", "note": "-", "wrong": "!"}


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        about: Its kind: ``software``, ``environment``, ``device``, ``adapter``, ``plugin``, ``model`` or ``command``.
        name: Its name.
        state: Whether it is as it should be.
        detail: What was found, and what to do if it is wrong.
        version: Its version, if it has one.
        origin: The distribution or folder that it comes from, if there is one.
    """

    about: str
    name: str
    state: State
    detail: str = ""
    version: str = ""
    origin: str = ""


def text_of(finding: Finding) -> str:
    """Return a finding as a line."""
    named = " ".join(filter(None, (finding.about, finding.name, finding.version)))
    origin = f" ({finding.origin})" if finding.origin else ""
    detail = f": {finding.detail}" if finding.detail else ""
    return f"{_MARKS[finding.state]} {named}{origin}{detail}"
