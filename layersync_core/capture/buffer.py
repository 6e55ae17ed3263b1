"""The buffer of hidden states that regularizers share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping

from torch import Tensor

_PREFIX = "layer_"


class HiddenStateBuffer(MutableMapping[str, Tensor]):
    """Map ``layer_{index}`` (0-based) to a tensor, keeping only the requested layers.

    Args:
        capture_layers: Indices to keep; None keeps every layer.
    """

    def __init__(self, capture_layers: Iterable[int] | None = None) -> None:
        self._wanted = None if capture_layers is None else frozenset(map(self.key, capture_layers))
        self._states: dict[str, Tensor] = {}

    @staticmethod
    def key(layer: int) -> str:
        """Return the key of a layer."""
        return f"{_PREFIX}{layer}"

    def __setitem__(self, key: str, value: Tensor) -> None:
        digits = key.removeprefix(_PREFIX)
        if digits == key or not digits.isdecimal():
            raise KeyError(f"{key!r} is not a key of this buffer; keys are {_PREFIX}0, {_PREFIX}1, …")
        if self._wanted is None or key in self._wanted:
            self._states[key] = value

    def __getitem__(self, key: str) -> Tensor:
        return self._states[key]

    def __delitem__(self, key: str) -> None:
        del self._states[key]

    def clear(self) -> None:
        """Forget every state."""
        self._states.clear()

    def __iter__(self) -> Iterator[str]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{key} {tuple(state.shape)}" for key, state in self._states.items())
        return f"HiddenStateBuffer({shapes})"
