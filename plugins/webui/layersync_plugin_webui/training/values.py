"""The content of the form: it travels with every request, and the server keeps none of it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request

from layersync_core import ConfigError
from layersync_plugin_webui.runs.files import entries
from layersync_plugin_webui.training.fields import WAYS, Fields

LARGEST = 4 * 1024 * 1024
FOLDERS = {"train": "output_dir", "run": "layersync_status_dir"}
"""The setting that says where a run writes."""

_MOST = 5000


@dataclass(frozen=True)
class Form:
    """A filled-in form.

    Attributes:
        texts: What was typed, by key, including fields that are not visible.
        way: ``train`` or ``run``.
        command: The user's own command, as typed.
        directory: The folder that it runs in.
        environment: The folder of its Python environment.
        variables: Names and values that are added to its environment.
        imported: The text of an imported file, as in a text field.
        original: The file itself, since a text field knows only one kind of line ending.
        filename: Its name, whose ending says what it is.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    way: str = "train"
    command: str = ""
    directory: str = ""
    environment: str = ""
    variables: tuple[tuple[str, str], ...] = ()
    imported: str = ""
    original: bytes = b""
    filename: str = ""

    def text(self, key: str) -> str:
        """Return what was typed into a field; empty if nothing was."""
        return self.texts.get(key, "")

    def given(self, fields: Fields) -> dict[str, str]:
        """Return the settings for the chosen way as text: what was filled in, and nothing else."""
        known = dict.fromkeys(field.key for field in fields.of(self.way))
        return {key: self.texts[key] for key in known if self.text(key).strip()}

    def typed(self, fields: Fields) -> dict[str, Any]:
        """Return the same settings as in a JSON file."""
        return {key: fields.by_key[key].typed(text) for key, text in self.given(fields).items()}

    def with_values(self, fields: Fields, values: Mapping[str, str], instead_of: Iterable[str]) -> Form:
        """Return the form with all previous values of some fields replaced."""
        kept = {key: text for key, text in self.texts.items() if key not in set(instead_of)}
        return replace(self, texts={**kept, **{key: text for key, text in values.items() if key in fields.by_key}})

    @property
    def file_text(self) -> str:
        """The text of the file, byte for byte if its text field was left unchanged.

        Raises:
            ConfigError: The file isn't UTF-8.
        """
        try:
            exact = self.original.decode()
        except UnicodeDecodeError as error:
            name = self.filename or "the file"
            raise ConfigError(f"{name} is not valid UTF-8: {error}; save it as UTF-8") from None
        return exact if _as_typed(exact) == _as_typed(self.imported) else self.imported

    @property
    def encoded(self) -> str:
        """The file itself, encoded for a hidden field."""
        return base64.b64encode(self.original).decode()

    @property
    def folder_key(self) -> str:
        """The setting that says where the run writes."""
        return FOLDERS[self.way]

    def name(self, runs: Path, proposed: str) -> str:
        """Return the run's name below the folder of runs."""
        given = self.text(self.folder_key).strip()
        if not given:
            return proposed
        path = Path(given).expanduser()
        return str(path.relative_to(runs)) if path.is_absolute() and path.is_relative_to(runs) else given


async def form_of(request: Request) -> Form:
    """Read a form that was sent.

    Raises:
        HTTPException: It is too large, or not a form.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            raise HTTPException(413)
    try:
        sent = parse_qsl(bytes(body).decode("ascii"), keep_blank_values=True, max_num_fields=_MOST, errors="replace")
    except ValueError:
        raise HTTPException(422) from None
    return read(sent)


def read(sent: list[tuple[str, str]]) -> Form:
    """Return a form from names and values; the page's own fields have a dot in their names, which no setting has."""
    texts = {name: text.replace("\r\n", "\n") for name, text in sent if "." not in name}
    own = {name: text.replace("\r\n", "\n") for name, text in sent if name.startswith("page.")}
    names = [text.strip() for name, text in sent if name == "page.variable"]
    values = [text for name, text in sent if name == "page.value"]
    way = own.get("page.way", "train")
    return Form(
        texts,
        way if way in WAYS else "train",
        own.get("page.command", ""),
        own.get("page.directory", "").strip(),
        own.get("page.environment", "").strip(),
        tuple((name, value) for name, value in zip(names, values, strict=False) if name or value),
        own.get("page.imported", ""),
        _decoded(own.get("page.original", "")),
        own.get("page.filename", ""),
    )


def _as_typed(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise HTTPException(422) from None


def as_json(values: Mapping[str, Any]) -> str:
    """Return settings as in a file."""
    return json.dumps(values, indent=2, ensure_ascii=False)


def free_name(runs: Path) -> str:
    """Return an unused name below the folder of runs."""
    taken = {entry.name for entry in entries(runs)}
    number = 1
    while f"run-{number}" in taken:
        number += 1
    return f"run-{number}"
