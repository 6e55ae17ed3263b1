"""A third party's plugin for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from layersync_core import LayerSyncConfig
from layersync_core.losses.hookspecs import hookimpl
from layersync_core.losses.plugins import third_parties
from layersync_core.session import plugins
from tests.fakes import Distribution
from tests.losses.support import Register

Install = Callable[[Distribution], Path]


@pytest.fixture
def register() -> Iterator[Register]:
    """Make regularizers come from an installed plugin; it reads its own key from the whole configuration."""
    names: list[str] = []

    def register(*regularizers: Any) -> None:
        class Plugin:
            @hookimpl
            def layersync_regularizers(self, config: LayerSyncConfig) -> Sequence[Any]:
                return regularizers if config.given.get("other_enabled", True) else []

        names.append(f"third party {len(names)}")
        plugins().manager.register(Plugin(), name=names[-1])

    yield register
    for name in names:
        plugins().manager.unregister(name=name)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a distribution for one test, and reload the plugins."""
    for loaded in (plugins, third_parties):
        loaded.cache_clear()
    yield lambda distribution: distribution.install(tmp_path, monkeypatch)
    for loaded in (plugins, third_parties):
        loaded.cache_clear()
