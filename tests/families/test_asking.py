"""A wrong answer from an installed adapter is reported with its distribution."""

from __future__ import annotations

from pathlib import Path

import pytest

from layersync_core import ConfigError, attach
from tests import fakes
from tests.startup_cases import DIT, GOOD, instance

ADAPTER = """
from layersync_core import get_adapter

class Adapter:
    family, api_version, model_classes = "odd", 1, ("OddTransformer",)
    def supports_hidden_states(self, model): return True
    def list_blocks(self, model): return get_adapter("dit").list_blocks(model)
    def capture(self, model, layers, buffer): return get_adapter("dit").capture(model, layers, buffer)
    {wrong}

adapter = Adapter()
"""
# What is wrong with a method -> the method, and what is said of it.
WRONG = {
    "fits raises": ("def supports_hidden_states(self, model): return 1 / 0", "ZeroDivisionError"),
    "blocks raise": ("def list_blocks(self, model): raise KeyError('blocks')", "KeyError: 'blocks'"),
    "blocks exit": ("def list_blocks(self, model): raise SystemExit(0)", "SystemExit: 0"),
    "no list": ("def list_blocks(self, model): return None", "'NoneType' object is not iterable"),
    "no blocks": ("def list_blocks(self, model): return []", "lists [] as the blocks"),
    "other things": ("def list_blocks(self, model): return ['transformer_blocks.0']", "expected a Block for each"),
    "a generator that fails": (
        "def list_blocks(self, model): yield from get_adapter('dit').list_blocks(model)[:3]; raise KeyError(3)",
        "KeyError: 3",
    ),
    "another order": (
        "def list_blocks(self, model): return get_adapter('dit').list_blocks(model)[::-1]",
        "with index 0, 1",
    ),
    "a capture that raises": ("def capture(self, model, layers, buffer): raise RuntimeError('no')", "RuntimeError: no"),
    "no capture": ("def capture(self, model, layers, buffer): return None", "lacks enabled, policy"),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_one_line_with_the_distribution(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, says = WRONG[name]
    fakes.broken("somebodys-odd", "odd", ADAPTER.format(wrong=wrong)).install(tmp_path, monkeypatch)
    model = instance(DIT)
    before = fakes.hooks(model)
    with pytest.raises(ConfigError) as error:
        attach(model, GOOD, family="odd")
    assert "adapter odd of somebodys-odd 9.8" in str(error.value)
    assert says in str(error.value)
    assert fakes.hooks(model) == before
    attach(model, GOOD).remove()


def test_a_right_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.broken("somebodys-odd", "odd", ADAPTER.format(wrong="")).install(tmp_path, monkeypatch)
    with attach(instance(DIT), GOOD, family="odd") as sync:
        assert str(sync.student) == "block 2 of 6 (transformer_blocks.1)"
