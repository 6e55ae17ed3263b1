"""Find the field that a command-line error is about from its text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from layersync_plugin_webui import language

ROLES = {"(the student block)": "layersync_student_block", "(the teacher block)": "layersync_teacher_block"}


@dataclass(frozen=True)
class FieldError:
    """An error about a field of the form.

    Attributes:
        text: The command line's own words.
        key: The field that it is about; empty if there is none.
        shown: The error in the reader's language; None if there is no translation.
    """

    text: str
    key: str = ""
    shown: str | None = None


def split_error(text: str, keys: Collection[str], at: str = "") -> list[FieldError]:
    """Return an error in parts, each with its field.

    Args:
        text: The command line's error; it may contain the errors of several fields.
        keys: All fields.
        at: The field, if it is known.
    """
    if not text:
        return []
    either = "|".join(sorted(map(re.escape, keys), key=len, reverse=True))
    parts = re.split(f"; (?=(?:{either}) is )", text) if either else [text]
    return [
        FieldError(part, at or key_in(part, keys), language.error_in_the_readers_language(part))
        for part in dict.fromkeys(parts)
    ]


def key_in(text: str, keys: Collection[str]) -> str:
    """Return the first field that a text names; empty if it names none."""
    # A plain word, such as model, is a field's name only at the beginning.
    start = re.match(r"(\w+) ", text)
    if start and start[1] in keys:
        return start[1]
    for word in re.findall(r"\w+", text):
        if "_" in word and word in keys:
            return str(word)
    return next((key for words, key in ROLES.items() if words in text and key in keys), "")


def by_key(errors: Iterable[FieldError]) -> dict[str, list[FieldError]]:
    """Return errors by their fields."""
    found: dict[str, list[FieldError]] = {}
    for error in errors:
        found.setdefault(error.key, []).append(error)
    return found


def plain(errors: Iterable[FieldError]) -> list[dict[str, Any]]:
    """Return errors as JSON values."""
    return [{"key": error.key, "text": error.text, "shown": error.shown} for error in errors]
