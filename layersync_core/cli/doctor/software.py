"""Distributions: LayerSync's, their requirements, those of training programs, and combinations known to fail."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import importlib_metadata

from layersync_core import __version__
from layersync_core.cli.doctor.findings import Finding, State
from layersync_core.entrypoints import PLUGINS, describe_failure, field_of, foreign, normalised, providers
from layersync_core.families.registry import GROUP

CORE = "layersync-core"
_OURS = "layersync-"
_BESIDE = (
    "torch",
    "diffusers",
    "accelerate",
    "transformers",
    "peft",
    "safetensors",
    "deepspeed",
    "bitsandbytes",
    "lightning",
    "pytorch-lightning",
)
"""Distributions that most training programs have, whether or not LayerSync requires them."""


class Combination(NamedTuple):
    """Versions that do not work together, what happens, and what to do."""

    versions: Mapping[str, str]
    why: str
    state: State


KNOWN_BAD = (
    Combination(
        {"torch": "<2.6", "transformers": ">=4.52"},
        "transformers loads no weights but safetensors with this torch (CVE-2025-32434); pip install 'torch>=2.6'",
        "note",
    ),
)


def look() -> Iterator[Finding]:
    """Yield Python, LayerSync's distributions with their requirements, and the other software involved."""
    yield Finding("software", "Python", "good", version=platform.python_version(), origin=sys.executable)
    versions = _installed()
    ours = sorted({CORE, *(name for name in versions if name.startswith(_OURS)), *_third_parties()} & versions.keys())
    if CORE not in ours:
        yield Finding("software", CORE, "note", "imported from a folder, not installed", __version__, _place())
    for name in ours:
        yield _of_ours(name, versions)
    for name in _BESIDE:
        if name in versions:
            yield _importable(name, versions[name][0])
        else:
            yield Finding("software", name, "note", "not installed")
    yield from bad_combinations({name: found[0] for name, found in versions.items()})
    if "peft" in versions and "torchao" in versions:
        yield from _peft_beside_torchao(versions["torchao"][0])


def bad_combinations(versions: Mapping[str, str], known: Iterable[Combination] = KNOWN_BAD) -> Iterator[Finding]:
    """Yield the combinations that are known to fail.

    Args:
        versions: Installed versions by normalised name.
        known: The known combinations.
    """
    for combination in known:
        if all(name in versions and _fits(versions[name], asked) for name, asked in combination.versions.items()):
            names = " with ".join(f"{name} {versions[name]}" for name in combination.versions)
            yield Finding("software", names, combination.state, combination.why)


def _peft_beside_torchao(version: str) -> Iterator[Finding]:
    """Ask peft, which refuses to add LoRA if a torchao is installed that it considers too old."""
    try:
        with foreign():
            import_module("peft.import_utils").is_torchao_available()
    except ImportError as error:
        yield Finding("software", "torchao", "wrong", f"peft refuses it: {describe_failure(error)}", version)
    except Exception:  # a broken peft is reported as software that cannot be imported
        return


def _of_ours(name: str, versions: Mapping[str, list[str]]) -> Finding:
    found = versions[name]
    if len({*found}) > 1:
        detail = (
            f"installed more than once, as {' and '.join(found)}; pip uninstall {name} until it is gone, then again"
        )
        return Finding("software", name, "wrong", detail, found[0])
    if name == CORE and found[0] != __version__:
        detail = f"{__version__} is imported instead, from {_place()}; pip install --force-reinstall {CORE}"
        return Finding("software", name, "wrong", detail, found[0])
    wrong = "; ".join(_unmet(name, versions))
    return Finding("software", name, "wrong" if wrong else "good", wrong, found[0], _place() if name == CORE else "")


def _unmet(name: str, versions: Mapping[str, list[str]]) -> Iterator[str]:
    """Yield the requirements of a distribution that aren't met."""
    Requirement = import_module("packaging.requirements").Requirement
    for text in importlib_metadata.requires(name) or ():
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        found = versions.get(normalised(needed.name))
        if found is None:
            yield f"needs {needed.name}, which is not installed; pip install '{needed.name}{needed.specifier}'"
        elif not needed.specifier.contains(found[0], prereleases=True):
            asked = f"{needed.name}{needed.specifier}"
            yield f"needs {asked}, and {needed.name} {found[0]} is installed; pip install '{asked}'"


def _importable(name: str, version: str) -> Finding:
    if name == "bitsandbytes":  # importing it prints a search for devices, and LayerSync doesn't need it
        return Finding("software", name, "good", version=version)
    try:
        with foreign():
            module = import_module(name.replace("-", "_"))
    except Exception as error:  # somebody else's module may raise anything
        return Finding("software", name, "wrong", f"cannot be imported: {describe_failure(error)}", version)
    return Finding("software", name, "good", version=version, origin=str(Path(module.__file__ or "").parent))


def _installed() -> dict[str, list[str]]:
    """Return the versions of every distribution by normalised name, in the order of the path."""
    found: dict[str, list[str]] = {}
    for distribution in importlib_metadata.distributions():
        name, version = field_of(distribution, "Name"), field_of(distribution, "Version")
        if name and version:
            found.setdefault(normalised(name), []).append(version)
    return found


def _third_parties() -> set[str]:
    return {normalised(found.distribution) for group in (GROUP, PLUGINS) for found in providers(group)}


def _fits(version: str, asked: str) -> bool:
    return bool(import_module("packaging.specifiers").SpecifierSet(asked).contains(version, prereleases=True))


def _place() -> str:
    return str(Path(import_module("layersync_core").__file__ or "").parent)
