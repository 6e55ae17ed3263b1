"""What a ``run.json`` says about a run; the file may come from anybody, so nothing in it is trusted."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from layersync_core.config import PRESETS
from layersync_core.spelling import flag

Translator = Callable[[str], str]

MASK = "•••"
# Must not match layersync_tokens, which isn't a secret.
_SECRET = re.compile(r"(^|[_\-.])(token|secret|password|passwd|api_?key|access_?key|credentials?|auth)$", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_PLACES = ("output_dir", "resume_from_checkpoint")
_LONGEST, _MOST, _LONGEST_COMMAND, _SHORTEST = 500, 200, 8000, 8


def facts_of(record: Mapping[str, Any], gettext: Translator) -> list[tuple[str, str]]:
    """Return what was trained, as pairs of label and text.

    Args:
        record: The content of a ``run.json``.
        gettext: Translates a text.
    """
    _ = gettext
    model, data, adapter = (part(record, key) for key in ("model", "data", "adapter"))
    blocks = record.get("blocks")
    pairs = [pair for pair in blocks if isinstance(pair, dict)] if isinstance(blocks, list) else []
    weights, trained = (_count(model.get(key)) for key in ("weights", "trained_weights"))
    rows: list[tuple[str, Any]] = [
        (_("Model"), model.get("class")),
        (_("Weights of the model"), weights),
        (_("Of these, trained"), None if trained == weights else trained),
        (_("Family"), record.get("family")),
        (_("Adapter"), f"{adapter.get('distribution')} {adapter.get('version')}" if adapter else None),
        (_("Arm"), record.get("arm")),
    ]
    for pair in pairs[:8]:
        rows += [
            (_("LayerSync Student Block"), pair.get("student")),
            (_("LayerSync Teacher Block"), pair.get("teacher")),
        ]
    rows += [
        (_("LayerSync Weight"), _weight(part(record, "config")) if pairs else None),
        (_("Main loss"), record.get("objective")),
        (_("Data"), data.get("name")),
        (_("Samples in the data"), _count(data.get("samples"))),
        (_("Steps"), record.get("steps")),
        (_("Seed"), record.get("seed")),
        (_("Device"), record.get("device")),
        (_("Processes"), record.get("processes")),
    ]
    return [(label, _text(value)) for label, value in rows if value is not None]


def settings_of_run(record: Mapping[str, Any], key: str) -> list[tuple[str, str]]:
    """Return the settings in a part of the record, with secrets masked.

    Args:
        record: The content of a ``run.json``.
        key: ``given`` for what the user gave, or ``config`` for what was in force.
    """
    known = sorted((str(name), value) for name, value in part(record, key).items() if value is not None)
    return [(name, _text(_masked(name, value))) for name, value in known[:_MOST]]


def versions_of(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the versions of Python and of the libraries."""
    return [(str(name), _text(version)) for name, version in [*part(record, "versions").items()][:_MOST]]


def command_of(record: Mapping[str, Any]) -> str:
    """Return the command line that repeats the run in another folder; empty where it is unknown."""
    if not isinstance(record.get("given"), dict):
        return ""
    processes = record.get("processes")
    words = ["layersync", "train"]
    if isinstance(processes, int) and processes > 1:
        words = ["accelerate", "launch", "--num_processes", str(processes), "-m", "layersync_core", "train"]
    for name, value in part(record, "given").items():
        if value is not None and name not in _PLACES:
            words += flag(name, _text(_masked(str(name), value), _LONGEST_COMMAND))
    line = shlex.join(words)
    return line if len(line) < _LONGEST_COMMAND else ""


def was_resumed(record: Mapping[str, Any]) -> bool:
    """Return whether the run was resumed from a checkpoint."""
    return bool(part(record, "given").get("resume_from_checkpoint"))


def part(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a section of the record; empty if it isn't a mapping."""
    found = content.get(key)
    return found if isinstance(found, dict) else {}


def _weight(config: Mapping[str, Any]) -> Any:
    given, preset = config.get("layersync_lambda"), config.get("layersync_preset")
    if given is not None:
        return given
    return PRESETS.get(preset if isinstance(preset, str) else "paper", PRESETS["paper"])


def _masked(name: str, value: Any, depth: int = 8) -> Any:
    """Return a setting with passwords and the like masked, which are recognised by its name or in a URL."""
    if _SECRET.search(name) or not depth:
        return MASK
    if isinstance(value, dict):
        return {key: _masked(str(key), inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_masked("", inner, depth - 1) for inner in value]
    if isinstance(value, str):
        for secret in _secrets():
            value = value.replace(secret, MASK)
        return _LOGIN.sub(MASK, value)
    return value


def _secrets() -> list[str]:
    """Return the values of environment variables whose names mark them as secrets, since a setting may hold one."""
    return [value for name, value in os.environ.items() if _SECRET.search(name) and len(value) >= _SHORTEST]


def _text(value: Any, longest: int = _LONGEST) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError):
        return "…"
    return text if len(text) <= longest else f"{text[:longest]}…"


def _count(value: Any) -> str | None:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else None
