"""What discovery is tried on is a class that nobody knows, even where an adapter for it has come since."""

from __future__ import annotations

import pytest

from layersync_core.families.known import KNOWN
from layersync_core.families.registry import list_families
from tests.discovery.classes import UNKNOWN


@pytest.fixture
def unknown_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the adapters of the classes in ``UNKNOWN``."""
    kinds = {unknown.kind for unknown in UNKNOWN}
    hidden = {family for family, known in KNOWN.items() if kinds.intersection(known.classes)}
    monkeypatch.setenv("LAYERSYNC_LOAD", ",".join(family for family in list_families() if family not in hidden))
    for family in hidden:
        monkeypatch.delitem(KNOWN, family)
