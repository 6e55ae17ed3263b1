"""What messages and metadata say of the documentation: an address of the site, of a page and a heading that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify

from layersync_core.documentation import DOCUMENTATION, docs_page

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [ROOT / "layersync_core", *ROOT.glob("adapters/*/layersync_*"), *ROOT.glob("plugins/*/layersync_*")]
PROJECTS = [ROOT / "pyproject.toml", *ROOT.glob("adapters/*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")]
TREES = {path: ast.parse(path.read_text()) for package in PACKAGES for path in package.rglob("*.py")}


def called_pages() -> set[tuple[str, ...]]:
    """Return the arguments of every call of docs_page."""
    calls = (node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {
        tuple(ast.literal_eval(argument) for argument in call.args)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == docs_page.__name__
    }


def test_an_address() -> None:
    assert docs_page("run") == f"{DOCUMENTATION}run/"
    assert docs_page("run", "metrics") == f"{DOCUMENTATION}run/#metrics"


def test_every_page_that_code_names_exists() -> None:
    named = called_pages()
    assert {("adapters",), ("discovery",), ("plugins",), ("simpletuner",)} <= named
    for page, *anchor in named:
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        headings = {slugify(heading, "-") for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
        assert {*anchor} <= headings


def test_no_text_of_the_code_names_a_file_that_a_package_lacks() -> None:
    texts = [node.value for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    for text in (text for text in texts if isinstance(text, str)):
        assert not re.search(r"\bdocs/|\.md\b(?<!\breport\.md)(?<!\bREADME\.md)|README(?!\.md$)", text), text
        assert all(address.startswith(DOCUMENTATION) for address in re.findall(r"https?://\S*readthedocs\S*", text))


def test_nor_does_a_template() -> None:
    for template in (ROOT / "layersync_core").rglob("*.tmpl"):
        assert "docs/" not in template.read_text()


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.parent.name)
def test_metadata_has_the_address(project: Path) -> None:
    urls = project.read_text().split("[project.urls]\n")[1].split("\n[")[0]
    assert f'Documentation = "{DOCUMENTATION}"\n' in urls


def test_every_page_that_somebody_wrote_is_in_the_navigation() -> None:
    listed = set(re.findall(r"^ *- (?:[^#\n]*: )?([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("**/*.md")}
    assert written - listed == set()
