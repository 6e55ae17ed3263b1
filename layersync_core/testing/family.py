"""Finds what a kit tests by the name of its family: the adapter, its tiny model and inputs for it."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from inspect import getfile
from pathlib import Path
from typing import Any

from layersync_core.errors import ConfigError, LayerSyncError, UnknownFamilyError
from layersync_core.families.registry import get_adapter, load_tiny, provider
from layersync_core.scaffold.writing import FILL_IN


class OfFamily:
    """An attribute of a kit's class that the family in ``family`` provides, unless a subclass overrides it.

    It is looked up on first use, so that a missing package fails the tests and not their collection.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: Any) -> Any:
        """Return what the family provides under this attribute's name.

        Raises:
            ConfigError: The class gives neither a family nor this attribute, or the family's package lacks it.
            LayerSyncError: The family is unknown, refused or not usable.
        """
        if owner.family is None:
            raise ConfigError(
                f'{owner.__name__} has neither family nor {self._name}: write family = "…", the name of an entry '
                f"point in layersync.adapters, or adapter = …, tiny_model = … and example_inputs = …"
            )
        try:
            return _provided(owner, self._name)
        except UnknownFamilyError as error:
            raise UnknownFamilyError(
                f"{owner.__name__}: {error}; where {owner.family!r} is your own, install its package first "
                "(pip install -e .), or write adapter = …, tiny_model = … and example_inputs = … in the class"
            ) from None


@cache  # reading every distribution's entry points takes milliseconds, and each check does so several times
def _provided(kit: Any, name: str) -> Any:
    family = kit.family
    _refuse_unfilled(kit)
    if name == "adapter":
        return get_adapter(family)
    tiny = load_tiny(family)
    if not hasattr(tiny, name):
        raise ConfigError(
            f"family {family}: {tiny.__name__} has no {name}; write tiny_model() and example_inputs(model, batch_size)"
        )
    return getattr(tiny, name)


def _refuse_unfilled(kit: Any) -> None:
    """Refuse a package that ``layersync new-adapter`` began and that has not been completed.

    Raises:
        ConfigError: Lines are still to be filled in; the message lists them.
    """
    found = provider(kit.family)
    modules = [] if found is None else [found.value.split(":")[0], f"{found.value.split(':')[0]}.tiny"]
    files = [_file(name) for name in modules]
    with suppress(OSError, TypeError):
        files.append(getfile(kit))
    lines = [line for file in files if file for line in unfilled(Path(file))]
    if lines:
        raise ConfigError(f"what layersync new-adapter marked is not filled in yet: {'; '.join(lines)}")


def unfilled(file: Path) -> list[str]:
    """Return the lines of a file that are still to be filled in, as ``file:line: what``."""
    rows = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
    marked = [(number, text.partition(FILL_IN)) for number, text in rows]
    return [f"{file.name}:{number}: {what.strip()}" for number, (_, mark, what) in marked if mark]


def _file(module: str) -> str | None:
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):  # the lookup of the package reports what is wrong
        return None
    return spec.origin if spec is not None and spec.has_location else None


@cache
def said_sample(kit: Any) -> str | None:
    """Return the name of the noisy sample from the tiny module of a kit's family; None if there is none."""
    try:
        name: str | None = None if kit.family is None else getattr(load_tiny(kit.family), "sample", None)
    except LayerSyncError:  # a kit may bring its own model for a family without a tiny one
        return None
    return name
