"""Pages: their templates, and what every one of them knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from layersync_plugin_webui import language


@dataclass(frozen=True)
class Page:
    """A page that the navigation leads to.

    Attributes:
        path: Where it is.
        title: Its name in English, marked by ``language.later``.
        router: Its routes.
    """

    path: str
    title: str
    router: APIRouter


class Templates:
    """Templates of the package; everything that is put into them is escaped.

    Args:
        pages: The navigation.
    """

    def __init__(self, pages: Sequence[Page]) -> None:
        self._environment = Environment(
            loader=PackageLoader("layersync_plugin_webui"),
            autoescape=True,
            undefined=StrictUndefined,
            extensions=["jinja2.ext.i18n"],
            trim_blocks=True,
            lstrip_blocks=True,
        )
        install: Callable[..., None] = self._environment.install_gettext_callables  # type: ignore[attr-defined]
        install(language.gettext, language.ngettext, newstyle=True)
        self._environment.globals.update(navigation=pages, language=language.current)
        self._environment.filters.update(moment=moment, duration=duration, figure=figure)

    def answer(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a template, filled in."""
        text = self._environment.get_template(template).render(values)
        return HTMLResponse(text.encode("utf-8", "replace"), status)  # a file may hold half a character


def moment(seconds: float) -> str:
    """Return a time on this machine's clock, by day and minute."""
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):  # a record may say anything
        return "?"


def duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds, the two largest of them."""
    whole = max(0, int(seconds))
    if whole < 60:
        return language.gettext("%(seconds)d s") % {"seconds": whole}
    if whole < 3600:
        return language.gettext("%(minutes)d min %(seconds)d s") % {"minutes": whole // 60, "seconds": whole % 60}
    return language.gettext("%(hours)d h %(minutes)d min") % {"hours": whole // 3600, "minutes": whole % 3600 // 60}


def figure(value: float | None) -> str:
    """Return a figure with four digits; a dash for none."""
    return "–" if value is None else f"{value:.4g}"
