"""Update the catalogues with the page's texts: ``python -m plugins.webui.tests.messages``.

Texts are in Python files and templates, never in scripts, which find theirs in data attributes. New texts are added
without a translation, and ``test_catalogues.py`` fails until someone translates them.
"""

from __future__ import annotations

import io
import re
from importlib.util import find_spec
from pathlib import Path

from babel.messages import Catalog, Message
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po

import layersync_core
from layersync_core import LayerSyncConfig, plugins
from layersync_core.run.settings import LaunchSettings
from layersync_plugin_trainer.config import TrainerConfig
from layersync_plugin_webui.error_texts import ERRORS
from layersync_plugin_webui.language import LANGUAGES, LOCALE, SOURCE

PACKAGE = LOCALE.parent
REPORT = Path(layersync_core.__file__).parent / "report"
"""Core's part of the page: the report that it writes accepts a translator."""

METHODS = [("**.py", "python"), ("templates/**.html", "jinja2")]
# As pages.py makes the environment.
OPTIONS = {"templates/**.html": {"trim_blocks": "true", "lstrip_blocks": "true", "silent": "false"}}
KEYWORDS = {"_": None, "gettext": None, "later": None, "ngettext": (1, 2)}
TRANSLATED = [name for name in LANGUAGES if name != SOURCE]


def extracted(package: Path = PACKAGE) -> Catalog:
    """Return the page's current texts: its own, and the descriptions of settings."""
    found = Catalog(project="layersync-plugin-webui", copyright_holder="", msgid_bugs_address="")
    for file, _line, message, comments, context in extract_from_dir(
        package, METHODS, OPTIONS, KEYWORDS, comment_tags=("Translators:",), strip_comment_tags=True
    ):
        found.add(message, locations=[(file, 1)], auto_comments=comments, context=context)
    for file, _line, message, comments, context in extract_from_dir(REPORT, METHODS[:1], keywords=KEYWORDS):
        found.add(message, locations=[(f"layersync_core/report/{file}", 1)], auto_comments=comments, context=context)
    for text in (*ERRORS, BETWEEN):
        found.add(text, locations=[("error_texts.py", 1)])
    for model in (LayerSyncConfig, LaunchSettings, TrainerConfig, *plugins().config_models()):
        for field in model.model_fields.values():
            if field.description and model.__module__.startswith(OURS):
                found.add(field.description, locations=[(model.__module__.replace(".", "/") + ".py", 1)])
    if package == PACKAGE:
        for name in TRANSLATED:  # those of plugins from this repository that aren't installed here
            for message in catalogue(name):
                if message.id and message.locations and all(_is_absent(file) for file, _line in message.locations):
                    found.add(message.id, locations=message.locations)
    return found


def _is_absent(file: str) -> bool:
    module = file.partition("/")[0]
    return f"{module}." in OURS and find_spec(module) is None


BETWEEN = "%(first)s; %(rest)s"
"""Between two statements of an error."""

OURS = ("layersync_core.", "layersync_plugin_trainer.", "layersync_plugin_crepa.", "layersync_plugin_twinflow.")
"""Packages whose settings are on the page with a translation; those of third parties are shown as they are."""


def path_of(language: str) -> Path:
    return LOCALE / language / "LC_MESSAGES" / "messages.po"


def catalogue(language: str) -> Catalog:
    path = path_of(language)
    with path.open("rb") if path.exists() else io.BytesIO() as file:
        content = read_po(file, language)
    content.header_comment, content.fuzzy = f"# {LANGUAGES[language].title}", False
    return content


def compiled(content: Catalog) -> bytes:
    file = io.BytesIO()
    write_mo(file, content)
    return file.getvalue()


# Dates and versions would change the files at every call.
_NOISE = re.compile(
    rb'^"(Project-Id-Version|Report-Msgid-Bugs-To|POT-Creation-Date|PO-Revision-Date|Generated-By|Last-Translator|Language-Team).*\n',
    re.MULTILINE,
)


def rendered(content: Catalog) -> bytes:
    file = io.BytesIO()
    write_po(file, content, width=120, sort_by_file=True, include_lineno=False, ignore_obsolete=True)
    return _NOISE.sub(b"", file.getvalue())


def updated(language: str, template: Catalog) -> Catalog:
    """Return a catalogue with exactly the page's texts; new ones have no translation."""
    content = catalogue(language)
    # Guessed translations would count as translations.
    content.update(template, no_fuzzy_matching=True)
    return content


def write(language: str, content: Catalog) -> None:
    path = path_of(language)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rendered(content))
    # Read again, so that both hold the same header.
    path.with_suffix(".mo").write_bytes(compiled(catalogue(language)))


def main() -> None:
    template = extracted()
    for language in TRANSLATED:
        content = updated(language, template)
        write(language, content)
        missing = [message.id for message in content if message.id and not all(translations(message))]
        print(f"{language}: {len(content)} texts, {len(missing)} without a translation in {path_of(language)}")
        for text in missing:
            print(f"  {text}")


def translations(message: Message) -> list[str]:
    """Return the forms of a translation; missing ones are empty."""
    string = message.string
    return [string or ""] if string is None or isinstance(string, str) else list(string)


if __name__ == "__main__":
    main()
