"""What the README and the tables of the pages show is what the code does."""

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from handbook import hooks
from layersync_core import LayerSyncConfig
from layersync_core.cli.list_supported import families, markdown
from layersync_core.run.settings import LaunchSettings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Made when the site is built, whose own test follows links into them.
MADE = tuple(DOCS / name for name in ("api", "reference", "troubleshooting"))
PAGES = [path for path in ROOT.glob("**/*.md") if not {".tox", "site-packages"} & {*path.parts}]


def test_the_table_of_families_is_the_listing() -> None:
    page = (DOCS / "families.md").read_text(encoding="utf-8")
    assert hooks.on_page_markdown(page, page=SimpleNamespace(file=SimpleNamespace(src_uri="families.md"))).count(
        f"\n\n{markdown(families())}\n\n"
    )


def test_the_table_of_settings_has_every_key() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    table = page.split("| key | default | meaning |")[1].split("\n\n")[0]
    keys = re.findall(r"^\| `(layersync_\w+)` \|", table, re.MULTILINE)
    assert keys == list(LayerSyncConfig.model_fields)


def test_the_table_of_run_settings_has_every_key() -> None:
    page = (DOCS / "run.md").read_text(encoding="utf-8")
    table = page.split("| key of `layersync run` |")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(layersync_\w+)` \|", table, re.MULTILINE) == list(LaunchSettings.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", prose)
    targets = [Path(os.path.normpath(page.parent / link)) for link in links]
    assert [it for it in targets if not it.exists() and not any(it.is_relative_to(made) for made in MADE)] == []
