"""Import and export of configuration files: in another program's file only LayerSync's settings are touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from layersync_core import ConfigError, canonical, is_on, parse_settings, unknown_key
from layersync_plugin_webui.settings_files import SettingsFile
from layersync_plugin_webui.training.fields import Fields, text_of
from layersync_plugin_webui.training.values import Form, as_json

NAME = "the file"


def read_in(form: Form, fields: Fields) -> Form:
    """Return a form filled from its imported file; fields that the file does not mention are empty.

    Raises:
        ConfigError: The file cannot be read, or has an unknown LayerSync setting.
    """
    values, about = _read(form, fields)
    _refuse_unknown(values, fields)
    texts = {key: text_of(value) for key, value in values.items()}
    read = form.with_values(fields, texts, instead_of=about)
    return replace(read, way="train") if _is_the_trainers(form, fields) else read


def written_out(form: Form, fields: Fields) -> str:
    """Return the imported file with the form's changes, or a new file if none was imported.

    Raises:
        ConfigError: The file cannot be read or changed.
    """
    if not form.imported.strip():
        return as_json(form.typed(fields)) + "\n"
    before, about = _read(form, fields)
    given = form.given(fields)
    shown = {field.key for field in fields.of(form.way)} & about
    changed = {key for key in shown if given.get(key, "") != text_of(before.get(key))}
    if not changed:
        return form.file_text
    if _is_the_trainers(form, fields):
        return as_json(form.typed(fields)) + "\n"
    typed = form.typed(fields)
    file = SettingsFile.read(form.file_text, form.filename or NAME)
    return file.with_values({key: typed.get(key) for key in fields.by_key if key in changed})


def _read(form: Form, fields: Fields) -> tuple[Mapping[str, Any], set[str]]:
    """Return the settings in a file, and every field that such a file may set."""
    losses = {field.key for loss in fields.losses for field in loss.fields}
    if _is_the_trainers(form, fields):
        return _content(form), losses | {field.key for field in fields.trainer}
    file = SettingsFile.read(form.file_text, form.filename or NAME)
    return file.values, losses | {field.key for field in fields.run}


def _content(form: Form) -> dict[str, Any]:
    return canonical(parse_settings(form.file_text.removeprefix("\ufeff"), form.filename or NAME))


def _is_the_trainers(form: Form, fields: Fields) -> bool:
    """Return whether a file belongs to ``layersync train``: it knows all keys, and one is the trainer's own.

    In another program's file the same names may have other meanings.
    """
    try:
        keys = {*_content(form)}
    except ConfigError:
        return False
    own = {field.key for field in fields.trainer}
    return bool(keys & own) and keys <= own | {field.key for loss in fields.losses for field in loss.fields}


def _refuse_unknown(values: Mapping[str, Any], fields: Fields) -> None:
    for key in values:
        prefix = key.partition("_")[0]
        # While a plugin is off, the host may use the same name for something else.
        if key not in fields.by_key and (prefix == "layersync" or is_on(values.get(f"{prefix}_enabled"))):
            raise ConfigError(unknown_key(key, fields.by_key))
