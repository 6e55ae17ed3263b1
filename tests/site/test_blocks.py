"""All code on the pages is run by a test, or says why it cannot be; what cannot is still held to what exists."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sysconfig
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml

from handbook.commands import commands
from handbook.messages import HOLE
from handbook.troubleshooting import catalogue
from layersync_core.cli.options import normalise
from layersync_core.run.settings import read
from tests.site.blocks import BLOCKS, PAGES, ROOT, SETTINGS, Block, blocks_of
from tests.site.surroundings import SURROUNDINGS, inside

OURS = {
    tomllib.loads(file.read_text())["project"]["name"]
    for file in (ROOT / "pyproject.toml", *ROOT.glob("*/*/pyproject.toml"))
}
# Made by commands of the pages, or of the reader's own: new packages.
OURS |= {"tox", "pytest", "peft", "cosmic-ray"}
NOT_OURS = ("cd", "git", "tox", "cosmic-ray", "cr-report")
SCRIPTS = sysconfig.get_path("scripts")
SHELL, PYTHON = ("bash", "console"), ("python",)
_PROGRAMS = re.compile(r"^(\$ |layersync [a-z]|pip install|python |accelerate |torchrun |tox\b|cd )", re.MULTILINE)
_SYNOPSIS = "[--"


def of(*languages: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language in languages]


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.kind == kind]


def excuse(block: Block) -> str:
    """Return what is missing that a block could be trusted; empty where nothing is."""
    if block.language == "text":
        lines = [line for line in block.code.splitlines() if _PROGRAMS.match(line) and _SYNOPSIS not in line]
        return f"{lines[0]!r} is a command: write ```bash" if lines else ""
    if block.language in SETTINGS or (block.language in SHELL and installs_alone(block)):
        return ""
    if block.language not in (*SHELL, *PYTHON, "toml"):
        return f"{block.language or 'a block without a language'}: write one of text, bash, python, json, yaml, toml"
    return "" if block.kind else "nothing runs it: put <!-- run: … --> or <!-- not run: why --> before it"


def installs_alone(block: Block) -> bool:
    """No index is reached in tests; that the names are ours another test says, and wheels are installed in another."""
    return all(words[:2] == ["pip", "install"] for words in block.commands())


@pytest.mark.parametrize("block", [pytest.param(block, id=block.place) for block in BLOCKS])
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    assert excuse(block) == ""


def test_every_fence_of_a_page_is_a_block() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(page)), page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```python\nprint()\n```", "nothing runs it"),
        ("```bash\nlayersync train\n```", "nothing runs it"),
        ("<!-- run: loop -->\n\nwords\n\n```python\nprint()\n```", "nothing runs it"),
        ("```text\nlayersync train\n```", "is a command"),
        ("```\nlayersync train\n```", "without a language"),
        ("<!-- not run: needs a GPU -->\n```bash\nlayersync train\n```", ""),
        ("```bash\npip install layersync-core\n```", ""),
    ],
)
def test_a_new_block_without_a_word_is_noticed(tmp_path: Path, text: str, said: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{text}\n")
    (block,) = blocks_of(page)
    assert (said in excuse(block)) if said else not excuse(block)


@pytest.mark.slow
@pytest.mark.parametrize("block", of_kind("run"))
def test_a_block_runs(block: Block, tmp_path: Path) -> None:
    with inside(tmp_path):
        SURROUNDINGS[block.detail](block, tmp_path)


@pytest.mark.parametrize("block", of_kind("run by"))
def test_its_runner_reads_the_page(block: Block) -> None:
    assert block.page.name in (ROOT / block.detail).read_text()


@pytest.mark.parametrize("block", of_kind("excerpt"))
def test_an_excerpt_stands_in_its_file(block: Block) -> None:
    source = (ROOT / block.detail).read_text()
    bare = re.sub(r"(?m)(\) -> [^:]+)(?=:$)", ")", re.sub(r"(\w): [A-Z\w][\w\[\], ]*?(?=[,)])", r"\1", source))
    # A page shows without its indentation what stands in a function.
    lines = map(str.strip, (bare if block.language == "python" else source).splitlines())
    for line in block.code.splitlines():
        wanted = line.partition("  #")[0].strip()
        if wanted not in ("", HOLE):
            assert wanted in lines, wanted


@pytest.mark.parametrize("block", of_kind("not run"))
def test_a_reason_is_one(block: Block) -> None:
    assert len(block.detail.split()) >= 3
    for file in re.findall(r"\b(?:\w+/)*tests(?:/\w+)*(?:\.py)?", block.detail):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("block", of(*PYTHON))
def test_python_is_python_and_what_it_imports_of_ours_exists(block: Block) -> None:
    tree = ast.parse(block.code.replace(HOLE, "..."))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in _packages():
            module = import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@cache
def _packages() -> set[str]:
    return {
        path.name
        for path in [
            *ROOT.glob("layersync_core"),
            *ROOT.glob("adapters/*/layersync_*"),
            *ROOT.glob("plugins/*/layersync_*"),
        ]
    }


@pytest.mark.parametrize("block", of("json", "yaml", "toml"))
def test_data_is_data_and_settings_are_settings(block: Block) -> None:
    load: Any = {"json": json.loads, "yaml": yaml.safe_load, "toml": tomllib.loads}[block.language]
    content = load(block.code)
    if any(str(key).startswith("layersync_") for key in content):
        read(content)


@pytest.mark.parametrize("block", [it for it in of(*SHELL) if it.values[0].kind != "run by"])
def test_what_a_command_names_exists(block: Block) -> None:
    for words in block.commands():
        while words and re.fullmatch(r"\w+=\S*", words[0]):
            words = words[1:]
        if "layersync_core" in words and words[words.index("layersync_core") - 1] == "-m":
            words = ["layersync", *words[words.index("layersync_core") + 1 :]]
        if words[0] == "layersync":
            check_command(words[1:])
        elif words[:2] == ["pip", "install"]:
            check_packages(words[2:])
        elif words[:2] == ["python", "-m"]:
            assert find_spec(words[2]), words
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), words
        elif words[0] == "pytest":
            assert all((ROOT / word).exists() for word in words[1:] if word[0] not in "-'"), words
        else:
            assert words[0] in NOT_OURS or shutil.which(words[0], path=SCRIPTS), words


def check_packages(words: list[str]) -> None:
    for before, word in zip(["", *words], words, strict=False):
        if before == "-r":
            assert (ROOT / word).is_file()
        elif before != "-e" and not word.startswith("-"):
            assert re.split(r"[\[<>=]", word)[0] in OURS, word


known_commands = cache(commands)


def check_command(words: list[str]) -> None:
    """Hold the flags of a command of ours to those that it has; what follows ``--`` is somebody else's."""
    name, *arguments = words
    command = known_commands()[name]
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    given = [word.partition("=")[0] for word in normalise(own, (), {flag.lstrip("-") for flag in flags})]
    assert [flag for flag in given if flag.startswith("--") and flag not in {*flags, "--help"}] == []


def test_a_flag_that_no_command_has_is_noticed() -> None:
    check_command(["run", "--layersync_enabled", "true", "--", "accelerate", "launch", "--whatever"])
    with pytest.raises(AssertionError):
        check_command(["train", "--max_training_steps", "3"])
    with pytest.raises(AssertionError):
        check_packages(["layersync-adapter-nowhere"])


@pytest.mark.parametrize("block", [it for it in of("text") if "error: " in it.values[0].code])
def test_an_error_that_a_page_shows_is_one_that_the_code_has(block: Block) -> None:
    known = [message.text for found in catalogue(ROOT).values() for message in found]
    for line in block.code.splitlines():
        shown = line.partition("error: ")[2].removesuffix(HOLE)
        assert [text for text in known if begins(text, shown)], shown


def begins(template: str, shown: str) -> bool:
    """Return whether a message, or its beginning, is what a template becomes with values in its places."""
    fixed = [part for part in template.split(HOLE) if part.strip()]
    if not fixed or len(fixed[0].split()) < 3:
        return False
    for part in fixed:
        found = shown.find(part)
        if found < 0:
            return any(shown.endswith(part[:length]) for length in range(1, len(part)))
        shown = shown[found + len(part) :]
    return True


def test_an_error_that_no_code_has_is_noticed() -> None:
    assert begins("the loss is multiplied with …, so …; give …", "the loss is multiplied with 0.5, so it is; ")
    assert not begins("the loss is multiplied with …, so …; give …", "the loss is divided by 0.5, so it is; ")
