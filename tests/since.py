"""Marks for tests of what only newer libraries do; `tox -e lowest` runs the others."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version


def since(library: str, least: str, why: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test where a library is older.

    Args:
        library: The distribution.
        least: The first of the versions that the tests run with which does it.
        why: What the older ones do.
    """
    here = version(library)
    return pytest.mark.skipif(Version(here) < Version(least), reason=f"{library} {here}: {why}")
