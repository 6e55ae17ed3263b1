"""Pages: their templates, and what all of them have in common."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import HTMLResponse

from layersync_plugin_webui import language, switching


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
        self._environment.globals.update(
            navigation=pages, language=language.current, languages=language.LANGUAGES.values(), here=switching.here
        )
        self._environment.filters.update(moment=moment, duration=duration, figure=figure)
        # For strings that aren't literals in a template; ``_`` would treat those as safe and not escape them.
        self._environment.filters.update(translated=language.gettext)

    def answer(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """Return a template, filled in."""
        text = self._environment.get_template(template).render(values)
        return HTMLResponse(text.encode("utf-8", "replace"), status)  # a file may hold a lone surrogate


def templates_of(request: Request) -> Templates:
    """Return the templates of the request's application."""
    templates: Templates = request.app.state.templates
    return templates


def moment(seconds: float) -> str:
    """Return a time on this machine's clock as date and minute."""
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
    """Return a number with four digits; a dash for none."""
    return "–" if value is None else f"{value:.4g}"
