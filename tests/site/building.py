"""The built site, read as a browser would: its pages, what they link to, and what they load."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from layersync_core.documentation import DOCUMENTATION

ROOT = Path(__file__).resolve().parents[2]
# What a browser fetches by itself, unlike an address that somebody follows.
_LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}
_LOADING_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch", "modulepreload"}


class Reference(NamedTuple):
    """An address in a page; ``loaded`` where the browser fetches it without being asked."""

    target: str
    loaded: bool


class Page(HTMLParser):
    """What an HTML file links to, its ids, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.references: list[Reference] = []
        self.ids: set[str] = set()
        self.classes: set[str] = set()
        self._texts: list[str] = []
        self._skipping = 0
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self._skipping += tag in ("script", "style")
        self.ids |= {given[name] for name in ("id", "name") if name in given and tag != "meta"}
        self.classes |= {*given.get("class", "").split()}
        if tag in _LOADED and _LOADED[tag] in given:
            self.references.append(Reference(given[_LOADED[tag]], loaded=True))
        if "href" in given:
            loaded = tag == "link" and bool(_LOADING_LINKS & {*given.get("rel", "").split()})
            self.references.append(Reference(given["href"], loaded))

    def handle_endtag(self, tag: str) -> None:
        self._skipping -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._texts.append(data)

    @cached_property
    def text(self) -> str:
        return " ".join("".join(self._texts).split())


class Site:
    """A folder that mkdocs has built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages = {file: Page(file) for file in sorted(folder.rglob("*.html"))}

    def page(self, path: str) -> Page:
        """Return the page of a Markdown file, by its path below ``docs`` without the ending."""
        return self.pages[self.folder / path / "index.html"]

    def broken(self, target: str, source: Path) -> str:
        """Return what is wrong with an address in a page; empty where nothing is."""
        if target.startswith(DOCUMENTATION):
            target = target.removeprefix(DOCUMENTATION) or "."
            source = self.folder / "index.html"
        address = urlsplit(target)
        if address.scheme in ("http", "https", "mailto"):
            return "" if address.netloc or address.path else f"{target} is no address"
        path = unquote(address.path)
        if source.name == "404.html" and path.startswith(urlsplit(DOCUMENTATION).path):
            path, source = path.removeprefix(urlsplit(DOCUMENTATION).path) or ".", self.folder / "index.html"
        file = (source.parent / path).resolve() if path else source
        file = file / "index.html" if file.is_dir() else file
        if not file.is_file():
            return f"{target} leads nowhere"
        wanted = unquote(address.fragment)
        return f"{target} has no such place" if wanted and wanted not in self.pages[file].ids | {"__top"} else ""


def build(folder: Path) -> str:
    """Build the site as ``tox -e docs`` does; return what was said.

    Raises:
        AssertionError: It failed, which a warning does as well.
    """
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
