"""The model classes of a package such as ``diffusers.models.transformers``, by looking into it, and who covers each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from layersync_core.families.refusals import REFUSALS
from layersync_core.families.registry import get_adapter, list_families

PACKAGE = "diffusers.models.transformers"
MODEL = "ModelMixin"
"""The base of what can be loaded by itself; what the package exports counts beside it."""

NO_DENOISERS = {
    "DreamLiteTransformer2DModel": "the attention blocks of DreamLite's UNet",
    "DualTransformer2DModel": "two Transformer2DModel side by side, a part of UNets",
    "MiniMaxMusic3RVQDepthDecoder": "predicts the next audio code, token by token, and is trained on cross-entropy",
    "Transformer2DModel": "the attention blocks of UNets; configurations of DiT and PixArt that name it load as their "
    "own classes",
    "TransformerTemporalModel": "a layer of UNets with frames, which denoises nothing by itself",
}
"""Classes that no training of a denoiser trains as its model, each with the reason."""


@dataclass(frozen=True)
class Module:
    """One module of the package.

    Attributes:
        name: Its name.
        classes: Names of the model classes that it defines.
        error: Why it cannot be imported; empty where it can.
    """

    name: str
    classes: tuple[str, ...] = ()
    error: str = ""


def modules(package: str = PACKAGE) -> list[str]:
    """Return the names of a package's modules."""
    path = importlib.import_module(package).__path__
    return sorted(f"{package}.{item.name}" for item in pkgutil.iter_modules(path))


def look_into(name: str) -> Module:
    """Return the model classes that a module defines."""
    try:
        package = importlib.import_module(name.rpartition(".")[0])
        found = vars(importlib.import_module(name))
    except Exception as error:  # third-party modules may raise anything
        return Module(name, error=f"{type(error).__name__}: {error}")
    own = [kind for kind in found.values() if isinstance(kind, type) and kind.__module__ == name]
    return Module(name, tuple(kind.__name__ for kind in own if _is_model(kind, package)))


def _is_model(kind: type, package: ModuleType) -> bool:
    bases = {base.__name__ for base in kind.__mro__[1:]}
    return MODEL in bases or ("Module" in bases and getattr(package, kind.__name__, None) is kind)


def denoisers() -> Iterator[tuple[str, str]]:
    """Yield class and module of every model of the installed diffusers that isn't an exception.

    Raises:
        ImportError: A module cannot be imported, so its classes are unknown.
    """
    for found in map(look_into, modules()):
        if found.error:
            raise ImportError(f"{found.name}: {found.error}")
        for kind in found.classes:
            if kind not in NO_DENOISERS:
                yield kind, found.name


@cache
def claimed() -> dict[str, str]:
    """Return ``class -> family`` of every class that an installed adapter names."""
    return {kind: family for family in list_families() for kind in get_adapter(family).model_classes}


def refused(kind: str) -> str | None:
    """Return the reason for which a class is refused whatever its configuration; None where it is not."""
    whole = [item for item in REFUSALS.values() if kind in item.classes and item.recognise is None]
    return whole[0].reason if whole else None
