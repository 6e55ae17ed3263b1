"""The command line that equals the form, for display: exactly the words that would be started."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from layersync_core import ConfigError
from layersync_plugin_webui.jobs import command_of_run, command_of_train
from layersync_plugin_webui.jobs.masking import MASK


def of_train(settings: Mapping[str, str]) -> str:
    """Return the command of the reference trainer.

    Raises:
        ConfigError: A value cannot be on a command line.
    """
    return shown(command_of_train(settings))


def of_run(
    settings: Mapping[str, str],
    command: str,
    directory: str = "",
    environment: str = "",
    variables: Sequence[tuple[str, str]] = (),
) -> str:
    """Return the command around the user's own; values of variables do not appear in it.

    Raises:
        ConfigError: A value cannot be on a command line.
    """
    try:
        words = command_of_run(settings, command)
    except ConfigError:  # still being typed
        words = command_of_run(settings, "…")
    end = words.index("--")
    if environment:
        words[0] = str(Path(environment).expanduser() / "bin" / words[0])
    lines = [f"cd {shlex.quote(directory)} &&"] if directory else []
    line = shown(words[: end + 1])
    named = " ".join(f"{shlex.quote(name)}={MASK}" for name, _ in variables if name)
    lines.append(f"{named} {line}" if named else line)
    return " \\\n".join(
        [*lines, "    " + " ".join(word if word == "…" else shlex.quote(word) for word in words[end + 1 :])]
    )


def shown(words: Sequence[str]) -> str:
    """Return words as typed into a terminal, one line per flag."""
    lines, line = [], list[str]()
    for word in words:
        if word.startswith("--") and line and word != "--":
            lines.append(line)
            line = []
        line.append(shlex.quote(word))
    return " \\\n    ".join(" ".join(line) for line in [*lines, line])
