"""Which distributions a training was done with, so that its files say what code made them. Imports no torch."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache

import importlib_metadata

from layersync_core import __version__
from layersync_core.entrypoints import Provider, loaded, normalised
from layersync_core.markup import printable

CORE = "layersync-core"
INDEX = "package index"
"""Where a distribution comes from that no URL was given for."""

_LIBRARIES = ("torch", "diffusers", "accelerate", "transformers", "peft", "safetensors", "deepspeed", "lightning")

Record = dict[str, str]
"""One distribution: ``name``, ``version``, ``role`` (core, adapter or plugin), ``entry`` (its entry point) and
``origin``."""


def taking_part(adapter: object, plugins: Iterable[Provider]) -> list[Record]:
    """Return the distributions whose code takes part in a training.

    Args:
        adapter: The model's; of one that came from no entry point nothing is known.
        plugins: Those that are switched on.
    """
    found = [(provider, "adapter") for provider, what in loaded() if what is adapter]
    found += [(provider, "plugin") for provider in plugins]
    core = {"name": CORE, "version": __version__, "role": "core", "entry": "", "origin": origin_of(CORE)}
    return [core, *(_record(provider, role) for provider, role in found)]


def only_loaded(used: Sequence[Record]) -> list[str]:
    """Return what else of entry points was imported into this process, as ``name version``.

    Args:
        used: What takes part.
    """
    names = {record["name"] for record in used}
    return sorted({str(provider) for provider, _ in loaded() if provider.distribution not in names})


def libraries() -> dict[str, str]:
    """Return the versions of what trainers are made of, as far as this process has imported it."""
    found = {name: version for name in _LIBRARIES if name in sys.modules and (version := _version(name))}
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}


def changed(before: object, now: Sequence[Record]) -> str:
    """Return how the distributions of a checkpoint differ from those of now, in a clause; empty where they do not.

    Args:
        before: What a checkpoint says; earlier ones say nothing.
        now: What takes part now.
    """
    versions = {normalised(record["name"]): record["version"] for record in now}
    told = []
    for record in before if isinstance(before, list) else () if before is None else (before,):
        name, version = (record.get("name"), record.get("version")) if isinstance(record, Mapping) else (None, None)
        if not isinstance(name, str) or not isinstance(version, str):
            told.append("something that its damaged record does not name")
        elif (here := versions.get(normalised(name))) != version:
            told.append(f"{name} {version} ({'takes no part now' if here is None else f'now {here}'})")
    return printable(", ".join(dict.fromkeys(told)))


@cache
def origin_of(distribution: str) -> str:
    """Return the URL that a distribution was installed from, with its commit and without passwords, or ``INDEX``.

    Source: PEP 610.
    """
    with suppress(Exception):  # somebody else's metadata
        text = importlib_metadata.distribution(distribution).read_text("direct_url.json")
        content = json.loads(text or "{}")
        url = re.sub(r"//[^/@]*@", "//", str(content["url"]))
        commit = content.get("vcs_info", {}).get("commit_id", "")
        return f"{url}@{commit}" if commit else url
    return INDEX


def _record(provider: Provider, role: str) -> Record:
    return {
        "name": provider.distribution,
        "version": provider.version,
        "role": role,
        "entry": f"{provider.name} = {provider.value}",
        "origin": origin_of(provider.distribution),
    }


@cache
def _version(name: str) -> str:
    with suppress(Exception):
        return importlib_metadata.version(name)
    return ""
