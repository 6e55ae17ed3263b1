"""HTML and SVG for files that are shared: no scripts, nothing loaded from outside, all text escaped.

Colours are attributes of SVG shapes, which even the policy `default-src 'none'` allows.
"""

from __future__ import annotations

import html
import os

_JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """Return a text without invisible characters and those that reverse the text around them.

    Joiners are kept, since scripts such as Devanagari need them.
    """
    try:
        raw = os.fsencode(text)
    except UnicodeEncodeError:  # not a file name
        raw = text.encode("utf-8", "surrogatepass")
    shown = raw.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() or char in _JOINERS else ascii(char)[1:-1] for char in shown)


def escape(text: object) -> str:
    """Return foreign text, such as a name, escaped for HTML and its attributes."""
    return html.escape(printable(str(text)))


def document(title: str, body: str, language: str = "en", head: str = "") -> str:
    """Return a whole page.

    Args:
        title: The window's title, as text.
        body: The body's HTML.
        language: The value of ``lang``.
        head: Further HTML for the head.
    """
    return (
        f'<!DOCTYPE html>\n<html lang="{escape(language)}"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"{head}</head>\n<body>\n{body}\n</body></html>\n"
    )


def svg(width: int, height: int, label: str, shapes: str) -> str:
    """Return a picture made of shapes; screen readers read its label, and skip a picture without one."""
    said = f'role="img" aria-label="{escape(label)}"' if label else 'aria-hidden="true"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f"{said}>{shapes}</svg>"
    )


def svg_text(x: float, y: float, text: str, anchor: str = "start", more: str = "") -> str:
    """Return a text in a picture.

    Args:
        x: Position of its start, middle or end.
        y: Its baseline.
        text: The text.
        anchor: start, middle or end.
        more: Further attributes.
    """
    place = f'x="{x:g}" y="{y:g}" text-anchor="{anchor}"{more}'
    return f'<text {place} font-size="10" font-family="sans-serif">{escape(text)}</text>'
