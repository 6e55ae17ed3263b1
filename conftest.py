"""What holds for every test of the repository."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from layersync_core.losses.plugins import third_parties
from layersync_core.session import plugins


@pytest.fixture(autouse=True)
def plugins_for_the_next_test() -> Iterator[None]:
    """Forget plugins that a test has loaded while LAYERSYNC_LOAD left some of them out."""
    yield
    for loaded in (plugins, third_parties):
        if (
            loaded.cache_info().currsize
            and "LAYERSYNC_LOAD" in loaded().missing()
            and "LAYERSYNC_LOAD" not in os.environ
        ):
            loaded.cache_clear()
