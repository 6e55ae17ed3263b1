"""The text of a JSON object, split into its members.

The text is known to be JSON, since Python's own parser has read it. Libraries that edit JSON in place accept JSON5,
which trainers cannot read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_BREAKS = re.compile(r"(?:\r?\n[ \t]*)+(?=\r?\n)")
_read = json.JSONDecoder().raw_decode


@dataclass(frozen=True)
class Member:
    """A member as it is written in the text.

    Attributes:
        lead: Space before it.
        key: Its key, with quotation marks and escapes.
        colon: The colon and the space around it.
        value: Its value.
        trail: Space after it.
        name: The decoded key.
        means: The decoded value.
    """

    lead: str
    key: str
    colon: str
    value: str
    trail: str
    name: str
    means: Any


@dataclass(frozen=True)
class Cut:
    """An object's text.

    Attributes:
        head: The text before its first member, including the bracket.
        members: Its members.
        space: The text between the brackets of an empty object.
        tail: The text after the last member and its space.
    """

    head: str
    members: Sequence[Member]
    space: str
    tail: str

    @classmethod
    def of(cls, text: str) -> Cut:
        """Return the pieces of a text that is a JSON object."""
        first = place = text.index("{") + 1
        members: list[Member] = []
        trail = _end(_SPACE, text, place)
        space = text[place:trail]
        while text[trail] != "}":
            start = _end(_SPACE, text, place)
            name, key = _read(text, start)
            colon = _end(_COLON, text, key)
            means, value = _read(text, colon)
            trail = _end(_SPACE, text, value)
            parts = text[place:start], text[start:key], text[key:colon], text[colon:value], text[value:trail]
            members.append(Member(*parts, name, means))
            place = trail + 1
        return cls(text[:first], members, "" if members else space, text[trail:])

    def put_together(self, kept: Sequence[Member | None], added: Sequence[tuple[str, str]]) -> str:
        """Return the text with members replaced, removed and added.

        Args:
            kept: For each member its replacement; None removes it.
            added: Keys and values to write at the end.
        """
        # The space before the first and after the last member belongs to the brackets.
        end = self.members[-1].trail if self.members else self.space
        trails = [member.trail for member in self.members[:-1]] + [""]
        pieces = [
            [member.lead, member.key + member.colon + member.value, trail]
            for member, trail in zip(kept, trails, strict=False)
            if member is not None
        ]
        lead, colon = self._style()
        pieces += [[lead, f"{key}{colon}{value}", ""] for key, value in added]
        if not pieces:
            return self.head + end + self.tail
        if self.members:
            pieces[0][0] = self.members[0].lead
        pieces[-1][2] = end
        return self.head + ",".join(map("".join, pieces)) + self.tail

    def _style(self) -> tuple[str, str]:
        """Return the space before a further member, and its colon."""
        if not self.members:
            return (f"{_BREAKS.sub('', self.space)}    " if "\n" in self.space else ""), ": "
        last = self.members[-1]
        lead = _BREAKS.sub("", last.lead)
        return (lead if len(self.members) > 1 or "\n" in lead else " "), last.colon


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    assert found is not None
    return found.end()
