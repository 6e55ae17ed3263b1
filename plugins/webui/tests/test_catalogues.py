"""Every text of the page is in every catalogue, with the words that its readers know."""

from __future__ import annotations

import gettext
import io
import re
from functools import cache

import pytest
from babel.messages.pofile import read_po

from layersync_plugin_webui import language
from plugins.webui.tests.messages import (
    METHODS,
    PACKAGE,
    TRANSLATED,
    catalogue,
    extracted,
    path_of,
    rendered,
    translations,
    updated,
)

# English word -> its possible translations, by language; readers of the web UI know these.
GLOSSARY = {
    r"blocks?": ("块", "ब्लॉक|block"),
    r"layers?": ("层", "लेयर"),
    r"students?": ("学生", "student|छात्र"),
    r"teachers?": ("教师", "teacher|शिक्षक"),
    r"weights?": ("权重", "वज़न|weight"),
    r"hidden states": ("隐藏状态", "hidden states"),
    r"cosine similarity": ("余弦相似度", "cosine similarity|कोसाइन समानता"),
    r"similarity": ("相似度", "similarity|समानता"),
    r"regulari[sz]\w+": ("正则", "regulari[sz]er"),
    r"(?<!(?-i:layersync) )train(ing|s|ed|er)?": ("训练", "ट्रेन|train"),
    r"steps?": ("步", "step"),
    r"start-?up errors?": ("启动报错", "startup error"),
    r"defaults?": ("默认", "डिफ़ॉल्ट"),
}
# Names of pages and fields: the translated name contains the English one.
NAMES = re.compile(r"(?:LayerSync|CREPA|TwinFlow) ((?:[A-Z][A-Za-z-]+ ?)+)|(Training|Loss functions|Runs|LayerSync)")
# What is the same in all languages.
SAME = re.compile(
    r"[\W\d_]*|(?:LayerSync|CREPA|TwinFlow|SimpleTuner|JSON|Hugging Face Hub|[Ss]teps?|[Cc]urves|Seed|Smoothing|Resume"
    r"|[a-z]+_[a-z_]+|optimiser steps|exit code|%\(\w+\)s|[\s·:;/.,])+"
)
PLACEHOLDER = re.compile(r"%\(\w+\)[a-z]|%%|\{\w*\}")


@cache
def template():
    return extracted()


def faults(content, wanted) -> list[str]:
    """Return what is wrong with a catalogue, one line per fault."""
    found = [f"obsolete: {key}" for key in content.obsolete]
    found += [f"obsolete: {message.id}" for message in content if message.id and wanted.get(message.id) is None]
    found += [f"missing: {message.id}" for message in wanted if message.id and content.get(message.id) is None]
    for message in content:
        if not message.id:
            continue
        if message.fuzzy:
            found.append(f"fuzzy: {message.id}")
        sources = [message.id] if isinstance(message.id, str) else list(message.id)
        forms = translations(message)
        if len(forms) != (content.num_plurals if message.pluralizable else 1):
            found.append(f"{len(forms)} forms: {message.id}")
        for form in forms:
            if not form.strip():
                found.append(f"untranslated: {message.id}")
            elif form in sources and not SAME.fullmatch(form):
                found.append(f"still English: {message.id}")
            elif sorted(PLACEHOLDER.findall(form)) != sorted(PLACEHOLDER.findall(sources[-1])):
                found.append(f"other placeholders: {message.id}: {form}")
            elif (form[0] == " ", form[-1] in " \n") != (sources[0][0] == " ", sources[0][-1] in " \n"):
                found.append(f"other space around: {message.id}")
    return found


def wrong_words(source: str, translation: str, place: int) -> list[str]:
    """Return the words of the glossary that a translation lacks."""
    text = PLACEHOLDER.sub("", translation)
    found = [
        english
        for english, words in GLOSSARY.items()
        if re.search(rf"(?<![\w./-]){english}(?![\w(=])", PLACEHOLDER.sub("", source), re.IGNORECASE)
        and not re.search(words[place], text, re.IGNORECASE)
    ]
    name = NAMES.fullmatch(source)
    if name and (name[1] or name[2]) not in translation:
        found.append(f"the name {name[1] or name[2]}")
    return found


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_catalogue_has_every_text_translated_and_no_other(name):
    assert faults(catalogue(name), template()) == [], "python -m plugins.webui.tests.messages, then translate"


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_catalogue_uses_the_words_that_its_readers_know(name):
    place = TRANSLATED.index(name)
    wrong = {}
    for message in catalogue(name):
        source = message.id if isinstance(message.id, str) else " ".join(message.id)
        for form in translations(message) if source else ():
            if words := wrong_words(source, form, place):
                wrong[form] = words
    assert wrong == {}


@pytest.mark.parametrize("name", TRANSLATED)
def test_numbers_stay_in_western_digits_and_the_keys_of_settings_as_they_are_written(name):
    for message in catalogue(name):
        source = message.id if isinstance(message.id, str) else " ".join(message.id)
        for form in translations(message) if source else ():
            assert not re.search(r"[०-९０-９]|\d[,，]\d{3}\b", form), form
            keys = re.findall(r"\b[a-z]+(?:_[a-z]+)+\b|--[a-z_]+", source)
            assert [key for key in keys if key not in form] == [], form


@pytest.mark.parametrize("name", TRANSLATED)
def test_what_is_read_is_what_was_written(name):
    with path_of(name).with_suffix(".mo").open("rb") as file:
        read = gettext.GNUTranslations(file)
    content = catalogue(name)
    for message in content:
        if message.id and message.pluralizable:
            forms = {count: read.ngettext(*message.id, count) for count in (0, 1, 2, 5, 100)}
            assert set(forms.values()) == set(translations(message)), "python -m plugins.webui.tests.messages"
        elif message.id:
            assert read.gettext(message.id) == message.string, "python -m plugins.webui.tests.messages"
    assert len(read._catalog) - 1 == sum(len(translations(message)) for message in content if message.id)


def test_every_language_of_the_switch_has_a_catalogue_and_every_catalogue_is_in_the_switch():
    assert sorted(path.name for path in language.LOCALE.iterdir()) == sorted(TRANSLATED)


BROKEN = {
    "untranslated: Runs": ('msgstr "运行记录（Runs）"', 'msgstr ""'),
    "fuzzy: Runs": ('msgid "Runs"', '#, fuzzy\nmsgid "Runs"'),
    "still English: Finished": ('msgstr "已完成"', 'msgstr "Finished"'),
    "obsolete: Nobody": ('msgid "Runs"', 'msgid "Nobody"\nmsgstr "x"\n\nmsgid "Runs"'),
    "missing: Finished": ('msgid "Finished"', 'msgid "Finishe"'),
    "other placeholders: exit code %(code)s": ('msgstr "退出码 %(code)s"', 'msgstr "退出码 %(kode)s"'),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_each_fault_is_found(fault):
    text = path_of("zh").read_text()
    assert BROKEN[fault][0] in text
    broken = read_po(io.BytesIO(text.replace(*BROKEN[fault]).encode()), "zh")
    assert [found for found in faults(broken, template()) if found.startswith(fault)]


def test_a_new_text_is_found_in_python_and_in_templates_and_one_without_it_is_obsolete(tmp_path):
    (tmp_path / "new.py").write_text('label = later("A new label")\nsaid = ngettext("one", "many", 2)\n')
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "new.html").write_text(
        '<p title="{{ _("A title") }}">{% trans x=1 %}A {{ x }}{% endtrans %}</p>'
    )
    found = {message.id for message in extracted(tmp_path)}
    assert {"A new label", ("one", "many"), "A title", "A %(x)s"} <= found
    assert any(fault.startswith("missing: ('one'") for fault in faults(catalogue("zh"), extracted(tmp_path)))
    assert "obsolete: Runs" in faults(catalogue("zh"), extracted(tmp_path))


def test_a_word_that_readers_do_not_know_is_found():
    assert wrong_words("LayerSync Weight", "LayerSync 重量（Weight）", 0) == [r"weights?"]
    assert wrong_words("LayerSync Weight", "LayerSync 权重", 0) == ["the name Weight"]
    assert wrong_words("the student block", "छात्र ब्लॉक", 1) == []
    assert wrong_words("Start-up error", "启动错误", 0) == [r"start-?up errors?"]
    assert wrong_words("layersync_student_block is missing", "缺少 layersync_student_block", 0) == []


@pytest.mark.parametrize("name", TRANSLATED)
def test_the_command_changes_nothing_where_nothing_is_new(name):
    assert rendered(updated(name, template())) == path_of(name).read_bytes(), "python -m plugins.webui.tests.messages"


def test_scripts_have_no_texts_of_their_own():
    scripts = [path for path in PACKAGE.rglob("*.js") if "vendor" not in path.parts]
    assert scripts
    assert not any(method == "javascript" for _pattern, method in METHODS)
    for path in scripts:
        code = re.sub(r"//.*", "", path.read_text())
        literals = [text for _mark, text in re.findall(r"([\"'`])((?:(?!\1).)*)\1", code)]
        words = [text for text in literals if re.fullmatch(r"[A-Za-z][\w,.;' -]*[a-z] [a-z][\w,.;' -]*", text)]
        assert words in ([], ["use strict"]), f"{path.name}: put it into a data attribute of a template"
