"""The documentation as it is built: no warning, no broken link, nothing from elsewhere, and all that code says."""

from __future__ import annotations

import contextlib
import functools
import html
import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import layersync_core
from handbook import settings, troubleshooting
from handbook.messages import HOLE, Message
from layersync_core import LayerSyncConfig, LayerSyncError, attach, get_adapter
from layersync_core.cli.list_supported import families
from layersync_core.documentation import DOCUMENTATION, docs_page
from layersync_core.families.registry import load_tiny
from layersync_core.run.settings import read
from plugins.webui.tests.browser import CHROMIUM, opened
from tests.site.building import ROOT, Site, build
from tests.site.test_addresses import called_pages

pytestmark = pytest.mark.slow

MESSAGES = [message for found in troubleshooting.catalogue(ROOT).values() for message in found]
READ_ELSEWHERE = [*ROOT.glob("plugins/*/README.md"), *ROOT.glob("adapters/*/README.md")]
# In the theme's script, for diagrams, a repository's stars, and browsers too old to have what they need.
DORMANT = ("https://unpkg.com/", "https://api.github.com", "https://gitlab.com")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site") / "built"
    said = build(folder)
    assert "WARNING" not in said
    return Site(folder)


def test_links_lead_somewhere(site: Site) -> None:
    broken = [
        f"{file.relative_to(site.folder)}: {wrong}"
        for file, page in site.pages.items()
        for reference in page.references
        if (wrong := site.broken(reference.target, file))
    ]
    assert broken == []


def test_a_broken_link_would_be_noticed(site: Site) -> None:
    start = site.folder / "index.html"
    assert site.broken("nowhere/", start)
    assert site.broken("run/#nowhere", start)
    assert site.broken(docs_page("nowhere"), start)
    assert site.broken("https:", start)
    assert not site.broken("run/#metrics", start)


def test_nothing_is_loaded_from_elsewhere(site: Site) -> None:
    for file, page in site.pages.items():
        loaded = [reference.target for reference in page.references if reference.loaded]
        assert [target for target in loaded if re.match(r"(\w+:)?//", target)] == [], file
        assert "mermaid" not in page.classes
    for file in site.folder.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]*", file.read_text()) == [], file
    for file in site.folder.rglob("*.js"):
        loads = re.findall(r"""["'`](https?://[^"'`\s$]+)""", file.read_text(encoding="utf-8"))
        foreign = [it for it in loads if not it.startswith(("http://www.w3.org/", "https://fb.me", *DORMANT))]
        assert foreign == [], file
    for file in site.folder.rglob("*.svg"):
        assert not re.search(r"(?:href|src)=[\"']?https?://", file.read_text()), file


def test_addresses_that_are_given_elsewhere_exist(site: Site) -> None:
    addresses = {docs_page(*arguments) for arguments in called_pages()}
    texts = {page: page.read_text(encoding="utf-8") for page in READ_ELSEWHERE}
    # The one README whose links are paths in the repository until it is built.
    texts[ROOT / "README.md"] = subprocess.run(
        [sys.executable, "-m", "hatch_fancy_pypi_readme", "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for page, text in texts.items():
        assert not re.search(r"\]\((?!https?://)[^)]*\)", text), (
            f"{page}: an index shows this page without the repository"
        )
        addresses |= set(re.findall(rf"\]\(({re.escape(DOCUMENTATION)}[^)]*)\)", text))
    assert {docs_page("adapters"), docs_page("zh"), DOCUMENTATION} <= addresses
    assert [wrong for address in addresses if (wrong := site.broken(address, site.folder / "index.html"))] == []


def test_every_setting_has_a_row(site: Site) -> None:
    models = settings.models(ROOT)
    assert {"LayerSyncConfig", "LaunchSettings", "TrainerConfig", "CrepaConfig"} <= {model.__name__ for model in models}
    text = site.page("reference/settings").text
    for model in models:
        for key, field in model.model_fields.items():
            assert re.search(rf"\b{key}\b", text), key
            assert field.description
            assert " ".join(field.description.split()) in text, key


def test_limits_stand_in_the_reference() -> None:
    table = settings.table(LayerSyncConfig)
    assert "| `layersync_student_block` | none | an integer, ≥ 0 | block that is pulled" in table
    assert "| `layersync_preset` | none | `paper`, `lora` | weight" in table
    assert "| `layersync_enabled` | `false` | true or false | switch" in table


def test_every_command_has_a_section(site: Site) -> None:
    ids = site.page("reference/commands").ids
    commands = (
        "list-supported",
        "inspect",
        "check",
        "run",
        "env",
        "doctor",
        "new-adapter",
        "train",
        "suggest",
        "webui",
    )
    assert {f"layersync-{name}" for name in commands} <= ids
    assert "--layersync_accumulation_steps" in site.page("reference/commands").text


def test_the_public_face_has_its_pages(site: Site) -> None:
    ids = {name for file, page in site.pages.items() if "api" in file.parts for name in page.ids}
    wanted = {f"layersync_core.{module}.{name}" for module, names in layersync_core.FACE.items() for name in names}
    assert wanted - ids == set()
    assert {"layersync_core.testing.AdapterConformance"} <= ids


def test_the_families_are_the_listing(site: Site) -> None:
    text = site.page("families").text
    for row in families():
        assert f"{row.family} {row.models} " in text
        assert row.state != "refused" or row.detail in text


class TestMessages:
    """Whatever the code says stands in a page of troubleshooting, where the search finds it."""

    def test_every_message_has_an_entry_that_the_search_finds(self, site: Site) -> None:
        docs = json.loads((site.folder / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]
        found = " ".join(
            _plain(re.sub(r"<[^>]+>", "", f"{it['title']} {it['text']}"))
            for it in docs
            if it["location"].startswith("troubleshooting/")
        )
        assert len(MESSAGES) > 500
        assert [message for message in MESSAGES if _plain(message.text) not in found] == []

    @pytest.mark.parametrize(
        "fails",
        [
            lambda: LayerSyncConfig.from_mapping({"layersync_student_block": 8}),
            lambda: LayerSyncConfig.from_mapping({"layersync_enabled": True}),
            lambda: LayerSyncConfig.from_mapping({"layersync_enabled": True, "layersync_studnet_block": 1}),
            lambda: LayerSyncConfig.from_mapping({"layersync_enabled": True, "layersync_pairs": []}),
            lambda: read({}),
            lambda: read({"layersync_target": "Flux"}),
            lambda: get_adapter("unheard_of"),
            lambda: get_adapter("lumina2"),
            lambda: attach(object(), {"layersync_enabled": True, "layersync_student_block": 1}),
            lambda: _attached(student=99),
            lambda: _attached(student=1, teacher=1).loss(),
        ],
    )
    def test_what_is_really_said_has_one(self, fails: Any) -> None:
        with pytest.raises(LayerSyncError) as error:
            fails()
        assert [entry for entry in MESSAGES if _says(entry, str(error.value))], error.value

    def test_what_is_said_nowhere_has_none(self) -> None:
        assert not [entry for entry in MESSAGES if _says(entry, "the moon is made of green cheese; eat it")]


def _attached(**blocks: int) -> Any:
    with pytest.warns() if blocks.get("teacher") == blocks["student"] else contextlib.nullcontext():
        given = {f"layersync_{name}_block": number for name, number in blocks.items()}
        return attach(load_tiny("dit").tiny_model(), {"layersync_enabled": True} | given)


def _plain(text: str) -> str:
    return " ".join(html.unescape(text).replace("¶", "").split())


def _says(entry: Message, text: str) -> bool:
    fixed = [part for part in entry.text.split(HOLE) if part.strip()]
    if sum(len(part.split()) for part in fixed) < 4:
        return False
    return re.search(".*?".join(map(re.escape, fixed)), text) is not None


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(site.folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *message: object) -> None:
        pass


@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no {CHROMIUM}; apt install chromium")
class TestInABrowser:
    """Nothing is complained of or asked elsewhere, which ``opened`` holds."""

    @pytest.mark.parametrize("width", [1280, 390])
    @pytest.mark.parametrize("path", ["", "configuration/", "families/", "reference/settings/", "troubleshooting/run/"])
    def test_a_page_fits_its_window(self, chromium: Any, address: str, path: str, width: int) -> None:
        with opened(chromium, address + path, viewport={"width": width, "height": 850}) as page:
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            pictures = "[...document.images].filter(it => it.complete && !it.naturalWidth).length"
            assert page.evaluate(pictures) == 0

    def test_the_search_leads_to_a_message(self, chromium: Any, address: str) -> None:
        from playwright.sync_api import TimeoutError as Late  # there where a browser is

        first = "[...document.querySelectorAll('a.md-search-result__link')].slice(0, 3).map(it => it.href)"
        with opened(chromium, address, viewport={"width": 1280, "height": 850}) as page:
            # What is typed before the page's script listens is lost, and the index takes its time: typed again. Results
            # are drawn anew meanwhile, so the page itself is asked until they are there.
            for _ in range(12):
                page.fill("input.md-search__input", "")
                page.fill("input.md-search__input", "given without layersync_enabled, so it would do nothing")
                with contextlib.suppress(Late):
                    page.wait_for_function(f"{first}.some(it => it.includes('troubleshooting/'))", timeout=20_000)
                    return
            pytest.fail(f"the first results are {page.evaluate(first)}")
