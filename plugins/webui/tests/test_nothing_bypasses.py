"""No text of the page is shown past the catalogues: each is marked, and what is not marked is found."""

from __future__ import annotations

import gettext
import re
from html.parser import HTMLParser

import pytest

from layersync_plugin_webui import language
from layersync_plugin_webui.app import PAGES
from plugins.webui.tests.folders import id_of

SHOWN = ("aria-label", "title", "alt")  # in an empty field stands an example or a value
# Where a page shows text that isn't its own: code, names of runs and metrics, and what is English everywhere.
ELSEWHERE = {"code", "pre", "script", "style", "title"}
NAMES = re.compile(
    r"English|中文|हिन्दी|LayerSync|CREPA|TwinFlow|loss|layersync_similarity|mine|train\.log|Dispersive|· LayerSync"
)
VOID = {"input", "meta", "link", "img", "br", "hr"}


class Marked(gettext.NullTranslations):
    def gettext(self, text):
        return f"⟦{text}⟧"

    def ngettext(self, one, many, count):
        return f"⟦{one if count == 1 else many}⟧"


class Texts(HTMLParser):
    """The texts of a page that are visible or read aloud."""

    def __init__(self):
        super().__init__()
        self.open, self.found = [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        # An error's original, and the values of settings, which stay as they are written.
        foreign = (values.get("lang") == "en" and tag != "html") or (tag == "option" and values.get("value"))
        if tag not in VOID:
            self.open.append("code" if foreign else tag)
        self.found += [values[name] for name in SHOWN if values.get(name)]
        self.found += [value for name, value in attributes if name.startswith("data-") and " " in (value or "")]

    def handle_endtag(self, tag):
        if tag not in VOID and self.open:
            self.open.pop()

    def handle_data(self, data):
        if not ELSEWHERE & {*self.open}:
            self.found.append(data)


def unmarked(text):
    inner = re.sub(r"⟦[^⟦⟧]*⟧", "", text)
    return text.strip() if inner == text else unmarked(inner)


def bare(html):
    """Return the texts that are not marked and have words in them."""
    page = Texts()
    page.feed(html)
    rest = [unmarked(text) for text in page.found]
    return sorted({text for text in rest if re.search(r"[^\W\d_]{2}", text) and not NAMES.fullmatch(text)})


@pytest.fixture
def marked(monkeypatch):
    monkeypatch.setattr(language, "_catalogue", lambda _name: Marked())


def test_what_is_not_marked_is_found():
    assert bare("<p>⟦Runs⟧</p><p title='A title'>text <b>⟦x⟧</b></p><code>code</code><p lang=en>an error</p>") == [
        "A title",
        "text",
    ]


def test_pages_of_runs(marked, reader, make_run, runs):
    assert bare(reader.get("/runs").text.replace(str(runs), "")) == []
    folder = make_run("mine", rows=5, code=1)
    (folder / "train.log").write_text("a line\n")
    identity = id_of(runs, folder)
    for path in ("/runs", "/runs/table?show=x", f"/runs/{identity}", f"/runs/{identity}/live", "/runs/none"):
        text = reader.get(path).text
        assert "⟦" in text
        assert bare(text.replace(str(runs), "")) == [], path


def test_every_page_of_the_navigation(marked, reader):
    for page in PAGES:
        assert bare(reader.get(page.path).text) == [], page.path
