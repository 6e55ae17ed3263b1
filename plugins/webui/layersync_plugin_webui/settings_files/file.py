"""A trainer's configuration file with LayerSync's settings in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from layersync_core import (
    ConfigError,
    canonical,
    kind_of,
    parse_settings,
    plain,
    same_value,
    settings_of,
    third_parties,
)
from layersync_plugin_webui.settings_files.members import Cut, Member

LARGEST = 4 * 1024 * 1024
"""Characters; a typical configuration has a few thousand."""
NAME = "the file"
_BOM = "\ufeff"


class SettingsFile:
    """A configuration file: its text, and the settings of LayerSync and its plugins in it.

    Args:
        text: The file's text.
        name: Its name, whose ending identifies YAML and TOML.

    Attributes:
        values: The settings of LayerSync and its plugins, each in one spelling.

    Raises:
        ConfigError: The text isn't an object of settings, or misspells a LayerSync setting.
    """

    def __init__(self, text: str, name: str = NAME) -> None:
        if len(text) > LARGEST:
            raise ConfigError(f"{name} has {len(text):,} characters; a file of settings has at most {LARGEST:,}")
        self._text, self._name = text, name
        self._content = parse_settings(text.removeprefix(_BOM), name)
        _refuse_what_json_has_not(self._content, name)
        self.values: dict[str, Any] = third_parties().ours(canonical(self._content))

    @classmethod
    def read(cls, text: str, name: str = NAME) -> SettingsFile:
        """Read the text of a file; as the class itself."""
        return cls(text, name)

    @classmethod
    def from_bytes(cls, data: bytes, name: str = NAME) -> SettingsFile:
        """Read a file as it was sent.

        Raises:
            ConfigError: As for the class; or it isn't UTF-8.
        """
        if len(data) > 4 * LARGEST:
            raise ConfigError(f"{name} has {len(data):,} bytes; a file of settings has at most {LARGEST:,}")
        try:
            return cls(data.decode(), name)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name} is not valid UTF-8: {error}") from None

    def with_values(self, changes: Mapping[str, Any]) -> str:
        """Return the text with LayerSync's settings changed, added at the end or removed, and the rest byte for byte.

        A setting that has its value already stays as it is written, too.

        Args:
            changes: New values by setting; None and "" remove one.

        Raises:
            ConfigError: A key is not LayerSync's, a value isn't JSON, or the file is YAML or TOML.
        """
        kind = kind_of(self._name)
        if kind != "JSON":
            raise ConfigError(
                f"{self._name} is {kind}, which cannot be changed without losing comments; export the settings as JSON"
            )
        wanted = {plain(key): None if value == "" else value for key, value in changes.items()}
        if hosts := wanted.keys() - third_parties().ours(wanted).keys():
            names = ", ".join(sorted(hosts))
            raise ConfigError(f"{names}: not a setting of LayerSync or a plugin, so it stays as it is")
        edits = {key: value for key, value in wanted.items() if not self._has(key, value)}
        if not edits:
            return self._text
        texts = {key: None if value is None else _json(key, value) for key, value in edits.items()}
        text = self._edited(texts)
        expected = {key: value for key, value in self.values.items() if key not in texts}
        expected |= {key: json.loads(value) for key, value in texts.items() if value is not None}
        if SettingsFile(text, self._name).values != expected:
            raise ConfigError(f"{', '.join(edits)} cannot be changed in {self._name}; change it there by hand")
        return text

    def _has(self, key: str, value: Any) -> bool:
        if value is None or key not in self.values:
            return value is None and key not in self.values
        return same_value(key, self.values[key], value)

    def _edited(self, edits: Mapping[str, str | None]) -> str:
        try:
            cut = Cut.of(self._text)
        except RecursionError as error:
            raise ConfigError(f"{self._name} is nested too deeply: {error}") from None
        means = settings_of(self._content)
        # A key that gives others their meaning (loss_type: layer_sync) can only go if those are respelt as LayerSync's.
        aliases = {spelling for spelling, key in means.items() if plain(spelling) != key}
        respelt = any(plain(spelling) == "loss_type" and means[spelling] in edits for spelling in aliases)
        ours = {spelling: self._spelt(means[spelling]) for spelling in aliases} if respelt else {}
        given, written = set(means.values()), set(means)
        kept: list[Member | None] = []
        for member in cut.members:
            name, key = member.name, means.get(member.name, "")
            new: Member | None = member
            if name in ours:
                new = None if ours[name] in written else replace(member, key=json.dumps(ours[name]))
                written.add(ours[name])
            elif not key and name in ours.values():  # null, replaced by one that now has this spelling
                new = None
            elif not key and plain(name) not in given:  # null: it takes the value if none else has it
                key = plain(name)
                given.add(key)
            if new is not None and key in edits:
                value = edits[key]
                new = None if value is None else replace(new, value=value)
            kept.append(new)
        added = [(json.dumps(self._spelt(key)), value) for key, value in edits.items() if value and key not in given]
        return cut.put_together(kept, added)

    def _spelt(self, key: str) -> str:
        """Return a key in the style of the file's own keys."""
        keys = [name for name in self._content if plain(name)]
        dashes = "--" if 2 * sum(name.startswith("--") for name in keys) > len(keys) else ""
        names = [name.lstrip("-") for name in keys]
        hyphens = any("-" in name for name in names) and not any("_" in name for name in names)
        return dashes + (key.replace("_", "-") if hyphens else key)


def _json(key: str, value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{key} cannot be written as JSON: {error}") from None


def _refuse_what_json_has_not(content: Mapping[str, Any], name: str) -> None:
    # Python's parser accepts NaN, and lone surrogates written as escapes.
    try:
        json.dumps(content, allow_nan=False, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{name} holds half a character (a lone surrogate), which isn't text") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid JSON: {error}") from None
