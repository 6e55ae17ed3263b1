"""Command lines: the one shown for the form, and the one that is started. No shell reads them."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from typing import Any

from layersync_core import ConfigError, canonical, flag

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_QUOTED = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)
_OPERATOR = re.compile(r"&&|\|\||(?<!\S)\d?[<>|&;]+|;(?!\S)")


def command_of_train(settings: Mapping[str, Any]) -> list[str]:
    """Return the command line of the reference trainer that equals the settings, as words.

    Raises:
        ConfigError: Two spellings of one setting differ, or a value cannot be on a command line.
    """
    return ["layersync", "train", *_flags(settings)]


def command_of_run(settings: Mapping[str, Any], command: str) -> list[str]:
    """Return the command line of ``layersync run`` around a command, as words.

    Raises:
        ConfigError: As in ``command_of_train``; or the command cannot be split into words.
    """
    return ["layersync", "run", *_flags(settings), "--", *words_of(command)]


def words_of(command: str) -> list[str]:
    """Return the words of a command as a shell splits them, with only a leading ``~`` expanded.

    Raises:
        ConfigError: There are none, a quote is not closed, or a part needs a shell: a variable in front of the
            program, ``&&``, ``|``, ``>`` and the like.
    """
    try:
        # Copied commands may continue on the next line.
        words = shlex.split(re.sub(r"\\\r?\n", " ", command))
    except ValueError as error:
        raise ConfigError(f"the command cannot be split into words: {str(error).lower()}; close or escape it") from None
    if not words:
        raise ConfigError("there is no command; give the one that starts the training, as in a terminal")
    if _ASSIGNMENT.match(words[0]):
        name = words[0].partition("=")[0]
        raise ConfigError(f"no shell reads the command, so {name}= does not set a variable; give {name} as a variable")
    if operator := _OPERATOR.search(_QUOTED.sub("_", command)):
        raise ConfigError(
            f"no shell reads the command, so {operator[0]} would be a word for its program; give the folder in its own "
            "field and one program, or bash -c '...' around it all"
        )
    return [checked(os.path.expanduser(word), "the command") for word in words]


def checked(text: str, what: str) -> str:
    """Return a text that can be a word of a command line or an environment variable.

    Raises:
        ConfigError: It cannot; the error doesn't show the text.
    """
    try:
        if "\0" not in text and os.fsencode(text) is not None:
            return text
    except UnicodeEncodeError:
        pass
    raise ConfigError(f"{what} has a character that no command line can have; leave it out")


def _flags(settings: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for key, value in canonical(settings).items():
        words += flag(key, checked(value if isinstance(value, str) else _plain(key, value), key))
    return words


def _plain(key: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key} cannot be written as a flag: {error}") from None
