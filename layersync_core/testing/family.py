"""Find what a kit tests by the name of its family: the adapter, its tiny model and inputs for it."""

from __future__ import annotations

from functools import cache
from typing import Any

from layersync_core.errors import ConfigError, LayerSyncError, UnknownFamilyError
from layersync_core.families.registry import get_adapter, load_tiny


class OfFamily:
    """An attribute of a kit's class that the family in ``family`` provides, until a subclass says another one.

    It is found when it is first asked for, so that a package that is missing fails tests and not their collection.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: Any) -> Any:
        """Return what the family provides under this attribute's name.

        Raises:
            ConfigError: The class says neither a family nor this attribute, or the family's package lacks it.
            LayerSyncError: The family is unknown, refused or not usable.
        """
        if owner.family is None:
            raise ConfigError(
                f'{owner.__name__} says neither family nor {self._name}: write family = "…", the name of an entry '
                f"point in layersync.adapters, or adapter = …, tiny_model = … and example_inputs = …"
            )
        try:
            return _provided(owner, self._name)
        except UnknownFamilyError as error:
            raise UnknownFamilyError(
                f"{owner.__name__}: {error}; where {owner.family!r} is your own, install its package first "
                "(pip install -e .), or write adapter = …, tiny_model = … and example_inputs = … in the class"
            ) from None


@cache  # reading every distribution's entry points takes milliseconds, and each check asks several times
def _provided(kit: Any, name: str) -> Any:
    family = kit.family
    if name == "adapter":
        return get_adapter(family)
    tiny = load_tiny(family)
    if not hasattr(tiny, name):
        raise ConfigError(
            f"family {family}: {tiny.__name__} has no {name}; write tiny_model() and example_inputs(model, batch_size)"
        )
    return getattr(tiny, name)


@cache
def said_sample(kit: Any) -> str | None:
    """Return the name of the noisy sample as the tiny module of a kit's family says it; None where there is none."""
    try:
        name: str | None = None if kit.family is None else getattr(load_tiny(kit.family), "sample", None)
    except LayerSyncError:  # a kit may bring a model of its own to a family without a tiny one
        return None
    return name
