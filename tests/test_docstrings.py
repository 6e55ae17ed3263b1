"""The examples in docstrings run, and what people begin with has one."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch

import layersync_core

WITH_EXAMPLE = {
    "layersync_core": (
        "attach",
        "Attachment.apply",
        "Attachment.loss",
        "Attachment.metrics",
        "Attachment.paused",
        "Attachment.probe",
        "BlockStack",
        "BlockStackAdapter",
        "LayerSyncConfig",
        "LayerSyncConfig.from_mapping",
        "Probe",
        "alignment_loss",
        "get_adapter",
        "load_tiny",
        "resolve",
        "suggest_pair",
    ),
    "layersync_core.testing": ("AdapterConformance",),
    "layersync_plugin_crepa": ("crepa_loss",),
    "layersync_plugin_twinflow": ("twinflow_loss",),
}
"""What a page about a package begins with."""

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL


def named(package: str, path: str) -> Any:
    found = import_module(package)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def texts_of(thing: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the docstrings with examples of a function, or of a class and its own methods."""
    own = {name: thing}
    if inspect.isclass(thing):
        own |= {f"{name}.{key}": getattr(value, "__func__", value) for key, value in vars(thing).items()}
    for key, value in own.items():
        text = getattr(value, "__doc__", None)
        if isinstance(text, str) and ">>>" in text:
            yield key, text


def public() -> dict[str, str]:
    """Return the docstrings with examples of the public face, of the kit's and of plugins' ``__all__``."""
    names = [("layersync_core", name) for name in layersync_core.__all__]
    for package in [*WITH_EXAMPLE][1:]:
        names += [(package, name) for name in import_module(package).__all__]
    return {f"{package}.{key}": text for package, name in names for key, text in texts_of(named(package, name), name)}


EXAMPLES = public()


@pytest.mark.parametrize("name", [f"{package}.{name}" for package, names in WITH_EXAMPLE.items() for name in names])
def test_what_people_begin_with_has_an_example(name: str) -> None:
    assert name in EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_does_what_it_shows(name: str) -> None:
    torch.manual_seed(0)
    test = doctest.DocTestParser().get_doctest(EXAMPLES[name], {"__name__": "__main__"}, name, None, 0)
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=told.append)
    assert result.failed == 0, "".join(told)
    assert result.attempted
