"""What the page says, in the reader's language: gettext catalogues in ``locale``, English without one."""

from __future__ import annotations

import gettext as catalogues
from collections.abc import Sequence
from contextvars import ContextVar
from functools import cache
from pathlib import Path

LOCALE = Path(__file__).parent / "locale"
SOURCE = "en"

_language: ContextVar[str] = ContextVar("language", default=SOURCE)


@cache
def languages() -> tuple[str, ...]:
    """Return the languages that there are, English first."""
    found = sorted(path.parent.parent.name for path in LOCALE.glob("*/LC_MESSAGES/messages.mo"))
    return (SOURCE, *found)


def choose(accepted: str) -> None:
    """Take the language of this request from what the browser prefers.

    Args:
        accepted: The header Accept-Language, such as ``zh-CN,zh;q=0.9,en;q=0.5``.
    """
    _language.set(next((known for wanted in _preferred(accepted) if (known := _known(wanted))), SOURCE))


def current() -> str:
    """Return the language of this request."""
    return _language.get()


def gettext(text: str) -> str:
    """Return a text in the language of this request."""
    return _catalogue(current()).gettext(text)


def ngettext(one: str, many: str, count: int) -> str:
    """Return a text in the form that a count asks for."""
    return _catalogue(current()).ngettext(one, many, count)


_ = gettext


def later(text: str) -> str:
    """Mark a text that is translated where it is shown."""
    return text


@cache
def _catalogue(language: str) -> catalogues.NullTranslations:
    return catalogues.translation("messages", LOCALE, [language], fallback=True)


def _known(wanted: str) -> str | None:
    plain = wanted.lower()
    return next((name for name in languages() if name.lower() in (plain, plain.partition("-")[0])), None)


def _preferred(accepted: str) -> Sequence[str]:
    weighted = []
    for place, part in enumerate(accepted.split(",")[:20]):
        name, _semicolon, weight = part.partition(";")
        try:
            weighted.append((-float(weight.strip().removeprefix("q=") or 1), place, name.strip()))
        except ValueError:
            continue
    return [name for _weight, _place, name in sorted(weighted)]
