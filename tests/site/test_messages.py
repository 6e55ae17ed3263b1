"""Reading what the code says from its sources: nothing that somebody can meet is left out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from handbook.messages import HOLE, Message, messages
from handbook.troubleshooting import AREAS, catalogue, shown
from plugins.webui.tests import said
from tests.site.building import ROOT

SOURCE = '''
"""A docstring that nobody is shown."""
HINT = f"see the page {URL} about it"
log = getLogger(__name__)

def do(name, count):
    """Another docstring of some words."""
    if count:
        raise ConfigError(f"{name} has {count:,} of them"
            " and needs fewer; take some away")
    log.warning("the plugin %s took %.0f s to load", name, 3)
    warnings.warn("this may not be meant", LayerSyncWarning, stacklevel=2)
    error = CaptureError("the states are gone " + (f"since step {count}" if name else "and nobody knows why") + HINT)
    journal.say_once("a line that is printed")
    option("--x", help="a help text of some words")
    return "ok", "two words", ["a part of some message"]
'''


def test_what_is_read(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text(SOURCE)
    found = {(message.kind, message.text) for message in messages(package)}
    assert found == {
        ("part", "see the page … about it"),
        ("ConfigError", "… has … of them and needs fewer; take some away"),
        ("log", "the plugin … took … s to load"),
        ("LayerSyncWarning", "this may not be meant"),
        ("CaptureError", "the states are gone …see the page … about it"),
        ("part", "and nobody knows why"),
        ("line", "a line that is printed"),
        ("part", "a part of some message"),
    }
    assert {message.module for message in messages(package)} == {"package"}


@pytest.mark.parametrize(
    ("text", "remedy"),
    [("it is wrong; take some away", "take some away"), ("it is wrong", ""), ("it is wrong; no", "")],
)
def test_what_to_do(text: str, remedy: str) -> None:
    assert Message("module", "ConfigError", text).remedy == remedy


def test_nothing_in_a_message_is_markup() -> None:
    assert shown("a_b_ <prefix> [1] # *") == "a\\_b\\_ &lt;prefix&gt; \\[1\\] \\# \\*"


def test_errors_that_another_reader_finds_have_an_entry() -> None:
    """The reader of the page's tests fills samples in, so that both would have to overlook the same."""
    known: dict[str, list[str]] = {}
    for found in catalogue(ROOT).values():
        for message in found:
            known.setdefault(message.module, []).append(message.text)
    missing, number = [], 0
    for package in (ROOT / "layersync_core", ROOT / "plugins/crepa/layersync_plugin_crepa"):
        for file in package.rglob("*.py"):
            module = ".".join(file.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
            for error in said.errors(file, {}):
                number += 1
                fixed = [part for part in re.split(r"x\d+", error.text) if len(part.split()) >= 3]
                if not any(all(" ".join(part.split()) in text for part in fixed) for text in known.get(module, [])):
                    missing += [error] if fixed else []
    assert number > 200
    assert missing == []


def test_every_page_has_messages_and_every_message_a_whole_word_beside_its_holes() -> None:
    assert all(catalogue(ROOT)[area] for area in AREAS)
    for found in catalogue(ROOT).values():
        assert all(re.search(r"\w{2}", message.text.replace(HOLE, "")) for message in found)
