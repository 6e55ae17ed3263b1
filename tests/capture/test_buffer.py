"""The buffer of hidden states."""

from __future__ import annotations

from collections.abc import MutableMapping

import pytest
import torch

from layersync_core import HiddenStateBuffer

STATE = torch.zeros(2, 3, 4)


def test_keeps_only_the_layers_that_were_asked_for() -> None:
    buffer = HiddenStateBuffer([2, 0, 2])
    for layer in range(4):
        buffer[f"layer_{layer}"] = STATE + layer
    assert set(buffer) == {"layer_0", "layer_2"}
    assert len(buffer) == 2
    assert buffer["layer_2"].mean() == 2


def test_keeps_every_layer_by_default_and_none_where_none_is_asked_for() -> None:
    for asked, kept in ((None, 12), ([], 0), (iter([11]), 1)):
        buffer = HiddenStateBuffer(asked)
        for layer in range(12):
            buffer[buffer.key(layer)] = STATE
        assert len(buffer) == kept


def test_keys_are_layer_and_the_index_from_0() -> None:
    assert HiddenStateBuffer.key(0) == "layer_0"
    assert HiddenStateBuffer.key(11) == "layer_11"


@pytest.mark.parametrize(
    "key", ["0", "layer", "layer_", "layer_-1", "layer_x", "layer_1.5", "blocks.0", "layer_ 1", ""]
)
def test_other_keys_are_mistakes(key: str) -> None:
    with pytest.raises(KeyError, match="layer_0"):
        HiddenStateBuffer()[key] = STATE


def test_is_a_mapping_that_holds_the_tensor_itself() -> None:
    buffer = HiddenStateBuffer([1])
    assert isinstance(buffer, MutableMapping)
    buffer["layer_1"] = STATE
    assert buffer["layer_1"] is STATE
    buffer["layer_1"] = other = STATE + 1
    assert dict(buffer) == {"layer_1": other}
    assert "layer_0" not in buffer
    with pytest.raises(KeyError):
        buffer["layer_0"]
    del buffer["layer_1"]
    assert not buffer


def test_clear_keeps_what_is_asked_for() -> None:
    buffer = HiddenStateBuffer([1])
    buffer["layer_1"] = STATE
    buffer.clear()
    assert len(buffer) == 0
    buffer["layer_0"] = buffer["layer_1"] = STATE
    assert list(buffer) == ["layer_1"]


def test_shows_shapes_and_no_values() -> None:
    buffer = HiddenStateBuffer([1])
    buffer["layer_1"] = STATE
    assert repr(buffer) == "HiddenStateBuffer(layer_1 (2, 3, 4))"
