"""The page's texts in the reader's language: gettext catalogues in ``locale``, English without one.

The compiled catalogues (.mo) are committed beside the texts (.po), and a test keeps them equal: so they are there in a
wheel, in an editable install and in a plain checkout, no build step can be forgotten, and Python itself reads them.
``python -m plugins.webui.tests.messages`` writes both.
"""

from __future__ import annotations

import gettext as catalogues
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from layersync_plugin_webui.error_matching import Translator
from layersync_plugin_webui.error_texts import ERRORS

LOCALE = Path(__file__).parent / "locale"
SOURCE = "en"


class Language(NamedTuple):
    """A language of the page.

    Attributes:
        name: The name of its catalogue.
        tag: The language tag for browsers and screen readers; for Chinese it includes the script.
        title: Its name in the language itself.
    """

    name: str
    tag: str
    title: str


_ALL = (Language(SOURCE, "en", "English"), Language("zh", "zh-Hans", "中文"), Language("hi", "hi", "हिन्दी"))
LANGUAGES = {language.name: language for language in _ALL}
"""The languages in the order of the switch."""

_language: ContextVar[str] = ContextVar("language", default=SOURCE)


def choose(accepted: str, wanted: str = "") -> None:
    """Set the language of this request.

    Args:
        accepted: The browser's preferences: the header Accept-Language, such as ``zh-CN,zh;q=0.9,en;q=0.5``.
        wanted: The name of the language that the reader chose on the page.
    """
    names = (wanted,) if wanted in LANGUAGES else _preferred(accepted)
    _language.set(next((known for name in names if (known := _known(name))), SOURCE))


def current() -> Language:
    """Return the language of this request."""
    return LANGUAGES[_language.get()]


def gettext(text: str) -> str:
    """Return a text in the language of this request."""
    return _catalogue(_language.get()).gettext(text)


def ngettext(one: str, many: str, count: int) -> str:
    """Return a text in the singular or plural form for a count."""
    return _catalogue(_language.get()).ngettext(one, many, count)


_ = gettext


def later(text: str) -> str:
    """Mark a text that is translated where it is shown."""
    return text


def error_in_the_readers_language(text: str) -> str | None:
    """Return the translation of a command-line error, to be shown above the original.

    None means that there is none, or that the language is English; then only the original is shown.
    """
    return None if _language.get() == SOURCE else _translated(_language.get(), text)


@lru_cache(256)
def _translated(language: str, text: str) -> str | None:
    return _errors().translate(text, _catalogue(language).gettext)


@cache
def _errors() -> Translator:
    return Translator(ERRORS)


@cache
def _catalogue(language: str) -> catalogues.NullTranslations:
    # A missing catalogue is an error: otherwise the page would silently be English.
    return catalogues.translation("messages", LOCALE, [language], fallback=language == SOURCE)


def _known(wanted: str) -> str | None:
    plain = wanted.lower()
    return next((name for name in LANGUAGES if name in (plain, plain.partition("-")[0])), None)


def _preferred(accepted: str) -> Sequence[str]:
    return [name for _weight, _place, name in sorted(_weighted(accepted))]


def _weighted(accepted: str) -> Iterator[tuple[float, int, str]]:
    for place, part in enumerate(accepted.split(",")[:20]):
        name, _semicolon, weight = part.partition(";")
        try:
            number = float(weight.strip().removeprefix("q=") or 1)
        except ValueError:
            continue
        if math.isfinite(number) and number > 0:  # 0 means that a language is not wanted
            yield -number, place, name.strip()
