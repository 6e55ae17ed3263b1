"""Translate an English error: find the texts it was made of and the values of their placeholders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import NamedTuple

LONGEST = 4000
_MOST = 24
_PLACE = re.compile(r"%\((\w+)\)s")

_WORD = r"\S+"
_VALUE = r"""b?'(?:[^'\\]|\\.)*'|b?"(?:[^"\\]|\\.)*"|[\[({].*?[\])}]|[^'"]+?"""
# What a placeholder may match, by its name: a key, or a value as Python writes it; others match anything.
_PLACES = {
    **dict.fromkeys(("key", "other", "third", "limit", "count", "least", "most", "family", "address"), _WORD),
    **dict.fromkeys(("value", "second"), _VALUE),
    "choices": r"'.*'",
}
NESTED = "why"
"""The placeholder that holds another error of the table."""
_PERHAPS_NESTED = "failure"
_LISTS = ("names", "choices")


class _Pattern(NamedTuple):
    text: str
    fixed: tuple[str, ...]
    form: re.Pattern[str]


class Translator:
    """Finds texts in errors.

    Args:
        texts: Texts of errors, with placeholders such as ``%(key)s``; the first that matches counts.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._patterns = [_pattern(text) for text in texts]

    def translate(self, error: str, gettext: Callable[[str], str]) -> str | None:
        """Return the translation of an error; None if some part of it matches no text.

        Args:
            error: One line.
            gettext: Returns a text in the reader's language.
        """
        parts = error.split("; ")
        if len(error) > LONGEST or len(parts) > _MOST:
            return None

        def said(piece: str) -> str | None:
            for pattern in self._patterns:
                # Before the regular expression, which is slow with many open placeholders.
                if all(fixed in piece for fixed in pattern.fixed) and (found := pattern.form.fullmatch(piece)):
                    values = {name: value(name, text) for name, text in found.groupdict().items()}
                    if None not in values.values():
                        return gettext(pattern.text) % values
            return None

        def value(name: str, text: str) -> str | None:
            if name in (NESTED, _PERHAPS_NESTED):
                nested = self.translate(text, gettext)
                return text if nested is None and name == _PERHAPS_NESTED else nested
            return re.sub(r",? (?:or|and) ", ", ", text) if name in _LISTS else text

        @cache
        def rest(start: int) -> str | None:
            if start == len(parts):
                return ""
            # Try the shortest statement first; a longer one may itself contain the separator.
            for end in range(start + 1, len(parts) + 1):
                first = said("; ".join(parts[start:end]))
                if first is not None and (after := rest(end)) is not None:
                    return gettext("%(first)s; %(rest)s") % {"first": first, "rest": after} if after else first
            return None

        return rest(0)


def _pattern(text: str) -> _Pattern:
    pieces = _PLACE.split(text)
    form = ""
    for place, piece in enumerate(pieces):
        form += re.escape(piece) if place % 2 == 0 else f"(?P<{piece}>{_PLACES.get(piece, '.+?')})"
    return _Pattern(text, tuple(filter(None, pieces[::2])), re.compile(form, re.DOTALL))
