"""The quick starts in Chinese and Hindi say nothing that the English pages do not, in the words of the page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from layersync_core import LayerSyncConfig

ROOT = Path(__file__).parents[1]
PAGES = {
    name: (ROOT / "docs" / name).read_text(encoding="utf-8")
    for name in ("index.md", "configuration.md", "suggest.md", "families.md")
}
ENGLISH = "\n".join(PAGES.values())
TEXTS = {name: (ROOT / "docs" / name / "README.md").read_text(encoding="utf-8") for name in ("zh", "hi")}
HEADS = {"zh": "| 键 | 默认 | 含义 |", "hi": "| key | डिफ़ॉल्ट | अर्थ |"}
# What is said in the reader's language in a table's column of defaults.
WORDS = {"zh": {"无": "none", "学生块": "student"}, "hi": {"कोई नहीं": "none"}}
# The glossary, as plugins/webui/tests/test_catalogues.py holds it for the page.
KNOWN = {
    "zh": (
        "块",
        "学生块（Student Block）",
        "教师块（Teacher Block）",
        "权重（Weight）",
        "余弦相似度",
        "正则化",
        "启动报错",
    ),
    "hi": (
        "ब्लॉक",
        "Student Block",
        "Teacher Block",
        "वज़न (Weight)",
        "cosine similarity",
        "regularizer",
        "startup error",
    ),
}


def blocks(text: str) -> list[list[str]]:
    """Return the lines of the code blocks, without comments and the space around them."""
    found = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [[re.sub(r"\s+# .*", "", line).rstrip() for line in block.splitlines()] for block in found]


def table(text: str, head: str) -> list[list[str]]:
    rows = text.split(f"{head}\n")[1].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("|").split(" |")] for row in rows]


@pytest.mark.parametrize("name", TEXTS)
def test_every_line_of_code_is_in_english(name: str) -> None:
    plain = re.sub(r"\s+# .*", "", ENGLISH)
    known = {line.rstrip() for block in blocks(ENGLISH) for line in block}
    for block in blocks(TEXTS[name]):
        missing = [line for line in block if line not in known and f"`{line}`" not in plain]
        assert missing == []


@pytest.mark.parametrize("name", TEXTS)
def test_every_command_and_setting_in_a_line_is_in_english(name: str) -> None:
    prose = re.sub(r"^```.*?^```", "", TEXTS[name], flags=re.DOTALL | re.MULTILINE)
    for code in re.findall(r"`([^`]+)`", prose):
        assert code in ENGLISH, code


@pytest.mark.parametrize("name", TEXTS)
def test_the_table_of_settings_is_the_english_one(name: str) -> None:
    ours = table(TEXTS[name], HEADS[name])
    english = table(PAGES["configuration.md"], "| key | default | meaning |")
    assert [row[0] for row in ours] == [f"`{key}`" for key in LayerSyncConfig.model_fields]
    assert [WORDS[name].get(row[1], row[1]) for row in ours] == [row[1] for row in english]


@pytest.mark.parametrize("name", TEXTS)
def test_the_code_is_code_and_figures_are_the_english_ones(name: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXTS[name], re.DOTALL)
    ast.parse(code)
    prose = re.sub(r"^```.*?^```", "", TEXTS[name], flags=re.DOTALL | re.MULTILINE)
    figures = set(re.findall(r"(?<![\w.#])\d+(?:\.\d+)*(?![\w.])", prose))
    assert figures - set(re.findall(r"\d+(?:\.\d+)*", ENGLISH)) == set()
    assert not re.search("[०-९]", prose)


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere_and_each_language_to_the_others(name: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", TEXTS[name]):
        assert (ROOT / "docs" / name / link).exists(), link
    others = {"../index.md", *(f"../{other}/README.md" for other in TEXTS if other != name)}
    assert others <= set(re.findall(r"\]\(([^)#]+)", TEXTS[name]))
    assert f"]({name}/README.md)" in PAGES["index.md"]
    assert f"](docs/{name}/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TEXTS)
def test_the_words_are_those_that_readers_know(name: str) -> None:
    assert [word for word in KNOWN[name] if word not in TEXTS[name]] == []
