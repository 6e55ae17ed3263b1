"""Concepts, choosing layers, the architecture and CONTRIBUTING say what the code is."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

if sys.version_info >= (3, 11):
    import tomllib

from layersync_core import LaunchSettings, LayerSyncConfig, get_adapter, suggest_pair
from layersync_core.cli import main
from layersync_core.families.known import KNOWN
from layersync_core.protocol import Block
from layersync_core.suggest.verdict import SATURATED, STRANGERS

ROOT = Path(__file__).parents[1]
CORE = ROOT / "layersync_core"
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/choosing.md",
        "docs/concepts.md",
        "docs/tutorial-adapter.md",
        "docs/tutorial-regularizer.md",
    )
}
CONCEPTS, CHOOSING, ARCHITECTURE = (PAGES[f"docs/{name}.md"] for name in ("concepts", "choosing", "architecture"))
FLOW = ROOT / "docs" / "images" / "flow.svg"
# What else begins with layersync_: metrics, files, packages, hooks and what one asks for in a test.
OTHERS = {
    "layersync_loss", "layersync_similarity", "layersync_similarity_centered", "layersync_grad_ratio",
    "layersync_state", "layersync_metrics", "layersync_process", "layersync_core",
}  # fmt: skip


def prose(text: str) -> str:
    """Return a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchor(heading: str) -> str:
    """Return what a heading is called in links, on GitHub as on the site."""
    return re.sub(r"[^\w -]", "", heading.replace("`", "").lower()).replace(" ", "-")


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_headings_that_are_there(name: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose(PAGES[name])):
        path, _, part = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        if part:
            headings = re.findall(r"^#+ (.+)$", prose(target.read_text(encoding="utf-8")), re.MULTILINE)
            assert part in map(anchor, headings), link


def test_the_loop_runs_and_prints_what_its_comments_say(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", CONCEPTS, re.DOTALL)
    exec(code, names := {"__name__": "concepts"})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == re.findall(r"print\(sync.student.*?# (.*)", code)[0]
    assert set(re.findall(r"layersync_\w+", printed[1])) == {"layersync_loss", "layersync_similarity"}
    assert any(bool(weight.grad.any()) for weight in names["model"].blocks[2].parameters())


@pytest.mark.parametrize("name", ["docs/concepts.md", "docs/choosing.md"])
def test_keys_are_keys(name: str) -> None:
    known = {*LayerSyncConfig.model_fields, *LaunchSettings.model_fields, *OTHERS}
    assert set(re.findall(r"\blayersync_\w+", PAGES[name])) - known == set()


def test_the_picture_is_readable_in_both_schemes_and_aloud() -> None:
    svg = ElementTree.parse(FLOW).getroot()
    assert svg.get("role") == "img"
    said = {element.get("id"): element.text for element in svg if element.tag.endswith(("title", "desc"))}
    assert {*str(svg.get("aria-labelledby")).split()} == {*said}
    assert all(said.values())
    style = "".join(element.text or "" for element in svg.iter() if element.tag.endswith("style"))
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    # Each class with a colour of its own has one for a dark page as well.
    coloured = set(re.findall(r"\.([\w-]+) \{[^}]*#", light))
    assert coloured
    assert coloured == set(re.findall(r"\.([\w-]+) \{[^}]*#", dark))
    assert "http" not in FLOW.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")


def test_the_suggested_pairs_are_the_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) → (\d+) \| (.*?) \|$", CHOOSING, re.MULTILINE)
    assert len(rows) > 10
    for depth, student, teacher, families in rows:
        blocks = [Block(index, f"blocks.{index}", depth=int(depth)) for index in range(int(depth))]
        assert [block.index + 1 for block in suggest_pair(blocks)] == [int(student), int(teacher)]
        assert {*re.findall(r"`(\w+)`", families)} <= {*KNOWN}


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel"])
def test_families_have_as_many_blocks_as_the_table_says(name: str) -> None:
    import diffusers
    import torch

    from layersync_core import resolve

    family = resolve({"_class_name": name}).family
    with torch.device("meta"):
        depth = len(get_adapter(family).list_blocks(getattr(diffusers, name)()))
    (row,) = re.findall(rf"^\| (\d+) \|.*`{family}`", CHOOSING, re.MULTILINE)
    assert int(row) == depth


def test_inspect_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    command = re.findall(r"```bash\nlayersync (inspect .*)\n```", CHOOSING)[0]
    assert main(command.split()) == 0
    shown = re.findall(r"```text\n(.*?)```", CHOOSING, re.DOTALL)[0]
    assert shown in capsys.readouterr().out


def test_the_limits_are_the_codes() -> None:
    text = " ".join(CHOOSING.split())
    assert f"Above {SATURATED} the pair is *saturated*" in text
    assert f"Below {STRANGERS} nothing says" in text


def test_the_architecture_names_every_package() -> None:
    packages = {file.parent.relative_to(ROOT).as_posix() for file in CORE.rglob("__init__.py")} - {"layersync_core"}
    headings = re.findall(r"^## (.*)$", ARCHITECTURE, re.MULTILINE)
    assert packages - {path for heading in headings for path in re.findall(r"`([^`]+)`", heading)} == set()
    for kind in ("adapters", "plugins"):
        assert f"## `{kind}`" in ARCHITECTURE


def test_the_architecture_has_the_layers_of_the_contract() -> None:
    (contract,) = re.findall(
        r'name = "Layers of core".*?layers = \[(.*?)\]', (ROOT / "pyproject.toml").read_text(), re.S
    )
    layers = [re.findall(r"\w+", line) for line in re.findall(r'"(.*?)"', contract)]
    shown = re.findall(r"^    (?!model)(.+)$", ARCHITECTURE, re.MULTILINE)
    assert [sorted(line.split(", ")) for line in shown] == [sorted(layer) for layer in layers]


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_path_is_there(name: str) -> None:
    """A path begins at the root, or at a package or the folder of a module that the heading above it names."""
    sections = re.split(r"^##+ ", prose(PAGES[name]), flags=re.MULTILINE)
    assert len(sections) > 5
    for heading, _, text in (section.partition("\n") for section in sections):
        named = [ROOT / path for path in re.findall(r"`([^`]+)`", heading)]
        folders = [ROOT, *named, *(path.parent for path in named)]
        for word in re.findall(r"`([\w./-]+)`", f"{heading}\n{text}"):
            first = word.split("/")[0]
            if word.endswith((".py", ".toml", ".txt")) or first in ("adapters", "benchmarks", "plugins", "tests"):
                assert any((folder / word).exists() for folder in folders), word


def test_the_commands_of_contributing_are_there() -> None:
    modules = re.findall(r"python -m (tests\.\w+)", PAGES["CONTRIBUTING.md"])
    assert all((ROOT / module.replace(".", "/")).with_suffix(".py").exists()
               or (ROOT / module.replace(".", "/") / "__main__.py").exists() for module in modules)  # fmt: skip
    tox = (ROOT / "tox.ini").read_text()
    (line,) = re.findall(r"^Before you commit: (.*)$", PAGES["CONTRIBUTING.md"], re.MULTILINE)
    assert [check for check in re.findall(r"`(.+?)`", line) if check not in tox] == []


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_mutation_command_is_of_files_that_are_there() -> None:
    (settings,) = re.findall(r"```toml\n(.*?)```", PAGES["CONTRIBUTING.md"], re.DOTALL)
    read = tomllib.loads(settings)["cosmic-ray"]
    paths = [read["module-path"], *re.findall(r"tests/\S+", read["test-command"])]
    assert [path for path in paths if not (ROOT / path).exists()] == []
