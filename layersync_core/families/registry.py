"""From a model or a config to the adapter of its family. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from layersync_core.documentation import docs_page
from layersync_core.entrypoints import LOAD_VARIABLE, Provider, describe_failure, foreign, providers
from layersync_core.errors import AdapterNotInstalledError, ConfigError, UnknownFamilyError, UnsupportedFamilyError
from layersync_core.families.folders import read_model_config
from layersync_core.families.known import KNOWN, RENAMED, distribution_of, known_family, why_unknown
from layersync_core.families.refusals import REFUSALS, Identity, refused_family
from layersync_core.families.unwrap import unwrap
from layersync_core.protocol import API_VERSION, Adapter

log = logging.getLogger(__name__)

GROUP = "layersync.adapters"
GUIDE = docs_page("adapters")  # where writing an adapter is explained


def installed() -> dict[str, list[Provider]]:
    """Return ``family -> its providers``, from metadata alone; more than one provider is a conflict."""
    families: dict[str, list[Provider]] = {}
    for provider in providers(GROUP):
        families.setdefault(provider.name, []).append(provider)
    return families


def list_families() -> list[str]:
    """Return the ids of the installed families, sorted; nothing is imported."""
    return sorted(family for family, found in installed().items() if any(provider.allowed for provider in found))


def provider(family: str) -> Provider | None:
    """Return the distribution that provides a family, or None.

    Raises:
        ConfigError: Two distributions claim the family.
    """
    found = installed().get(family, [])
    if len(found) > 1:
        names = " and ".join(sorted(item.distribution for item in found))
        raise ConfigError(f"family {family} is claimed by {names}; uninstall all but one of them")
    return found[0] if found else None


def get_adapter(family: str) -> Adapter:
    """Return the adapter of a family.

    Raises:
        AdapterNotInstalledError: The family is known but its adapter is missing, excluded or broken.
        UnsupportedFamilyError: The family is refused.
        UnknownFamilyError: Nobody knows the family.
        ConfigError: Two distributions claim it.

    Examples:
        >>> from layersync_core import get_adapter
        >>> get_adapter("dit").family
        'dit'
    """
    found = provider(family)
    if found is not None:
        return _load(found)
    if family in REFUSALS:
        raise UnsupportedFamilyError(_refusal(family), family=family)
    if family in KNOWN:
        distribution = distribution_of(family)
        raise AdapterNotInstalledError(
            f"the adapter of family {family} is not installed; pip install {distribution}",
            family=family,
            distribution=distribution,
        )
    raise UnknownFamilyError(f"unknown family {family!r}; {_installed_text()}", family=family)


def resolve(model_or_config: Any) -> Adapter:
    """Return the adapter for a model, a config dict with ``_class_name``, or a path to a folder or config.json.

    An adapter of a third party that claims the family is asked first, then the refusals, the known classes, and the
    further classes of every installed adapter (third parties', and forks that trainers ship), each isolated from the
    others' failures.

    Raises:
        UnsupportedFamilyError: The family is refused.
        AdapterNotInstalledError: The family is known but its adapter is missing, excluded or broken.
        UnknownFamilyError: No installed adapter describes the class.
        ConfigError: The config cannot be read or names no class, or two adapters claim the class.

    >>> from layersync_core import resolve
    >>> resolve({"_class_name": "DiTTransformer2DModel"}).family
    'dit'
    """
    identity = identify(model_or_config)
    family = refused_family(identity)
    if family is not None and family not in installed():
        raise UnsupportedFamilyError(_refusal(family), family=family, model_class=identity.classes[0])
    if family is not None:
        _tell_refusal(family)
    family = family or known_family(identity)
    if family is not None:
        if (nearer := _nearer(identity)) is not None:
            return nearer
        try:
            return get_adapter(family)
        except AdapterNotInstalledError as error:
            raise AdapterNotInstalledError(
                f"{identity.classes[0]}: {error}",
                family=family,
                distribution=error.distribution,
                model_class=identity.classes[0],
            ) from error.__cause__
    return _by_other_classes(identity)


def identify(model_or_config: Any) -> Identity:
    """Return class names and configuration of a model, a config dict or a path.

    Raises:
        ConfigError: The config cannot be read or names no class.
    """
    if isinstance(model_or_config, (str, Path)):
        model_or_config = read_model_config(model_or_config)
    if isinstance(model_or_config, Mapping):
        name = model_or_config.get("_class_name")
        if not isinstance(name, str) or not name:
            raise ConfigError("the config has no _class_name, so its family is unknown; name it with family=…")
        return Identity((name,), model_or_config)
    model_or_config = unwrap(model_or_config)
    # Along the bases: FSDP2 and trainers subclass or rename the class (FSDPWanTransformer3DModel).
    classes = tuple(base.__name__ for base in type(model_or_config).__mro__)
    # Models of original repositories keep their settings as attributes of the model.
    config = getattr(model_or_config, "config", model_or_config)
    return Identity(classes, config if isinstance(config, Mapping) else getattr(config, "__dict__", {}))


def load_tiny(family: str) -> ModuleType:
    """Import the ``tiny`` module of a family's adapter: ``tiny_model()`` and ``example_inputs(model, batch_size)``.

    Raises:
        ConfigError: The adapter ships no such module, or it needs a package that is missing.

    Examples:
        >>> from layersync_core import load_tiny
        >>> tiny = load_tiny("dit")
        >>> model = tiny.tiny_model()
        >>> tiny.example_inputs(model, batch_size=2)["hidden_states"].shape
        torch.Size([2, 1, 8, 8])
    """
    get_adapter(family)
    found = provider(family)
    assert found is not None  # get_adapter has just used it
    name = f"{found.value.split(':')[0]}.tiny"
    try:
        with foreign():
            return import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise ConfigError(
                f"family {family}: {found.distribution} ships no tiny model; write {name} with tiny_model() and "
                f"example_inputs(model, batch_size), see {GUIDE}"
            ) from None
        raise ConfigError(f"family {family}: {name} needs {error.name}; pip install {error.name}") from None
    except ImportError as error:
        raise ConfigError(f"family {family}: {name} needs newer versions of what it imports: {error}") from None
    except Exception as error:
        raise ConfigError(
            f"family {family}: {name} of {found} cannot be imported: {describe_failure(error)}"
        ) from error


def _load(found: Provider) -> Adapter:
    family = found.name
    if not found.allowed:
        raise _unusable(
            found, f"the adapter of family {family} is installed but {LOAD_VARIABLE} leaves it out; add {family} to it"
        )
    try:
        adapter = found.load()
    except Exception as error:
        raise _unusable(
            found, f"the adapter of family {family} ({found}) cannot be imported: {describe_failure(error)}"
        ) from error
    try:
        with foreign():
            _check_adapter(adapter, found)
    except AdapterNotInstalledError:
        raise
    except Exception as error:  # an attribute may be a property that fails
        raise _unusable(found, f"{found} isn't an adapter: {describe_failure(error)}; see {GUIDE}") from error
    return adapter  # type: ignore[no-any-return]


def _check_adapter(adapter: Any, found: Provider) -> None:
    if isinstance(adapter, type):
        raise _unusable(found, f"{found} isn't an adapter: {found.value} is a class; register an instance of it")
    missing = [name for name in _ADAPTER_NAMES if not hasattr(adapter, name)]
    if missing:
        raise _unusable(found, f"{found} isn't an adapter: {found.value} lacks {', '.join(missing)}; see {GUIDE}")
    if wrong := [name for name in _METHODS if not callable(getattr(adapter, name))]:
        raise _unusable(
            found, f"{found} isn't an adapter: {', '.join(wrong)} of {found.value} isn't a method; see {GUIDE}"
        )
    classes = adapter.model_classes
    if not isinstance(classes, (tuple, list)) or not all(isinstance(name, str) for name in classes):
        raise _unusable(
            found,
            f"{found} isn't an adapter: model_classes of {found.value} is {classes!r}; expected a tuple of class names",
        )
    if adapter.api_version != API_VERSION:
        raise _unusable(
            found,
            f"{found} is written for adapter API {adapter.api_version!r}, this layersync-core for {API_VERSION}; "
            "install versions of both that match",
        )
    if adapter.family != found.name:
        raise _unusable(
            found, f"{found} registers family {found.name} but its adapter says {adapter.family}; the two must agree"
        )


def _unusable(found: Provider, message: str) -> AdapterNotInstalledError:
    return AdapterNotInstalledError(message, family=found.name, distribution=found.distribution)


_METHODS = ("supports_hidden_states", "list_blocks", "capture")
_ADAPTER_NAMES = ("family", "api_version", "model_classes", *_METHODS)


def _nearer(identity: Identity) -> Adapter | None:
    """Return the adapter that claims a class derived from a known family's; None where none does."""
    distances = range(len(identity.classes))
    known = (known_family(Identity((identity.classes[place],), identity.config)) for place in distances)
    place = next((place for place, family in enumerate(known) if family), 0)
    return _claimed(identity.classes[:place])[0] if place else None


def _by_other_classes(identity: Identity) -> Adapter:
    adapter, broken = _claimed(identity.classes)
    if adapter is not None:
        return adapter
    also = f"; not usable: {'; '.join(broken)}" if broken else ""
    why = why_unknown(identity) or f"no adapter knows the model class {identity.classes[0]}"
    raise UnknownFamilyError(
        f"{why}; {_installed_text()}{also}; or give the family auto, which finds its blocks and tokens by measuring",
        model_class=identity.classes[0],
    )


def _claimed(names: Sequence[str]) -> tuple[Adapter | None, list[str]]:
    """Return the adapter for the first of the classes that any adapter claims, and why other adapters are unusable."""
    adapters: list[tuple[str, Adapter, set[str]]] = []  # provider, adapter, the classes it claims
    broken: list[str] = []
    for family, found in installed().items():
        known = {*KNOWN[family].classes, *RENAMED} if family in KNOWN else set()
        for item in found:
            if not item.allowed:
                continue
            try:
                adapter = _load(item)
            except AdapterNotInstalledError as error:
                broken.append(str(error))
                continue
            adapters.append((f"{item.distribution} ({family})", adapter, {*adapter.model_classes} - known))
    # The nearest base decides: trainers derive one family's class from another's.
    for name in names:
        matching = {provided: adapter for provided, adapter, classes in adapters if name in classes}
        if len(matching) > 1:
            raise ConfigError(
                f"{names[0]} is claimed by {' and '.join(matching)}; uninstall all but one, or name the family"
            )
        if matching:
            return next(iter(matching.values())), broken
    return None, broken


def _refusal(family: str) -> str:
    refusal = REFUSALS[family]
    return f"LayerSync does not support {refusal.models} (family {family}): {refusal.reason}"


@cache
def _tell_refusal(family: str) -> None:
    """Log once whose adapter is used for a family that LayerSync refuses."""
    log.warning(
        "LayerSync itself refuses family %s, since %s; the adapter of %s is used",
        family,
        REFUSALS[family].reason,
        " and ".join(map(str, installed()[family])),
    )


def _installed_text() -> str:
    return f"installed families: {', '.join(list_families()) or 'none'}; to add one see {GUIDE}"
