"""A model's config, a file of settings, and distributions for one test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Distribution
from tests.startup_cases import DIT


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Distribution], Path]:
    """Install a distribution for one test."""
    return lambda distribution: distribution.install(tmp_path, monkeypatch)


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "config.json").write_text(json.dumps(DIT))
    return str(tmp_path / "dit")


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., str]:
    """Write a file of settings and return its path."""

    def write(**content: Any) -> str:
        (tmp_path / "settings.json").write_text(json.dumps(content))
        return str(tmp_path / "settings.json")

    return write
