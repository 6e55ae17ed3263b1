"""The pages of troubleshooting: every message of the code under a heading of its own, which the search leads to."""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from handbook.messages import HOLE, Message, messages

# Page -> its title and the modules whose messages are on it; the longest name that fits decides.
AREAS = {
    "settings": ("Settings and files", ("layersync_core.config", "layersync_core.spelling", "layersync_core.files")),
    "families": ("Families, adapters and discovery", ("layersync_core.families", "layersync_core.capture.discovery")),
    "capture": ("Hidden states and tokens", ("layersync_core.capture",)),
    "losses": (
        "Losses, pairs and plugins",
        ("layersync_core.losses", "layersync_core.pairs", "layersync_core.metrics"),
    ),
    "run": ("layersync run", ("layersync_core.run", "layersync_core.auto")),
    "commands": ("Commands", ("layersync_core.cli", "layersync_core.scaffold", "layersync_core.suggest")),
    "testing": ("The conformance kit", ("layersync_core.testing",)),
    "core": ("attach() and the rest of core", ("layersync_core",)),
    "trainer": ("layersync train", ("layersync_plugin_trainer",)),
    "crepa": ("CREPA", ("layersync_plugin_crepa",)),
    "twinflow": ("TwinFlow", ("layersync_plugin_twinflow",)),
    "webui": ("layersync webui", ("layersync_plugin_webui",)),
    "packages": ("Adapters and other plugins", ("layersync_",)),
}
# They hold the translations of others' messages, the names of fields, and the words of a report.
_NOT_MESSAGES = re.compile(r"webui\.(error_texts|training\.labels|language)$|layersync_core\.report\b")
_HEADING = 90
_SAID = {
    "log": "a line of the log",
    "line": "a line that is printed",
    "LayerSyncWarning": "a warning (`LayerSyncWarning`)",
    "ValueError": "an error in a setting (`ConfigError`)",
}


def packages(root: Path) -> list[Path]:
    """Return the folders of all packages of the repository."""
    return [
        root / "layersync_core",
        *sorted(root.glob("adapters/*/layersync_*")),
        *sorted(root.glob("plugins/*/layersync_*")),
    ]


@cache
def catalogue(root: Path) -> dict[str, list[Message]]:
    """Return the messages of the repository's packages by page."""
    pages: dict[str, list[Message]] = {area: [] for area in AREAS}
    for package in packages(root):
        for message in messages(package):
            if not _NOT_MESSAGES.search(message.module):
                pages[_area_of(message.module)].append(message)
    return pages


def pages(root: Path) -> dict[str, str]:
    """Return the pages by their paths below ``docs``."""
    return {f"troubleshooting/{area}.md": _page(AREAS[area][0], found) for area, found in catalogue(root).items()}


def shown(text: str) -> str:
    """Return a message as the Markdown of a page has it: nothing in it is markup."""
    # What Python-Markdown lets a backslash stand before, and may take for markup.
    return re.sub(r"([\\`*_{}\[\]#+!-])", r"\\\1", html.escape(text, quote=False))


def _area_of(module: str) -> str:
    fitting = [
        (len(prefix), area) for area, (_, prefixes) in AREAS.items() for prefix in prefixes if module.startswith(prefix)
    ]
    return max(fitting)[1]


def _page(title: str, found: Iterable[Message]) -> str:
    by_module: dict[str, list[Message]] = defaultdict(list)
    for message in found:
        by_module[message.module].append(message)
    sections = [
        _section(module, [m for m in all_of if m.kind != "part"], [m for m in all_of if m.kind == "part"])
        for module, all_of in by_module.items()
    ]
    return "\n\n".join([f"# {title}", "`…` stands where a message has a value.", *sections]) + "\n"


def _section(module: str, whole: list[Message], parts: list[Message]) -> str:
    lines = [f"## `{module}`", *map(_entry, whole)]
    if parts:
        lines += [
            "**Parts of messages, and lines that are printed**",
            "\n".join(f"- {shown(part.text)}" for part in parts),
        ]
    return "\n\n".join(lines)


def _entry(message: Message) -> str:
    said = f"This is {_SAID.get(message.kind, f'a `{message.kind}`')}."
    remedy = [f"What to do: {shown(message.remedy)}"] if message.remedy else []
    if len(message.text) <= _HEADING:
        return "\n\n".join([f"### {shown(message.text)}", said, *remedy])
    heading = f"{message.text[:_HEADING].rpartition(' ')[0]} {HOLE}"
    return "\n\n".join([f"### {shown(heading)}", f"> {shown(message.text)}", said, *remedy])
