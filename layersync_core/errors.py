"""Errors that users can meet. Each message is one line for a terminal: what was asked, what is valid, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LayerSyncError(Exception):
    """Base of every error that layersync raises on purpose; its message is one line, whatever a user's text holds."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class _ModelError(LayerSyncError):
    """An error about a model's family.

    Attributes:
        family: Id of the family; empty where unknown.
        distribution: Name of the distribution that has, or would have, its adapter; empty where there is none.
        model_class: Class of the model that was asked for; empty where none was.
    """

    def __init__(self, message: str, *, family: str = "", distribution: str = "", model_class: str = "") -> None:
        super().__init__(message)
        self.family, self.distribution, self.model_class = family, distribution, model_class


class ConfigError(LayerSyncError, ValueError):
    """A setting, a shape or a combination of them that cannot work."""


class MisfitError(_ModelError, ConfigError):
    """A model whose class an adapter knows, without the blocks that it describes: a different model, or half built."""


class UnsupportedFamilyError(_ModelError):
    """A known model family whose hidden states cannot be aligned."""


class UnknownFamilyError(_ModelError, LookupError):
    """A model class that no installed adapter describes."""


class AdapterNotInstalledError(_ModelError):
    """A known family whose adapter is missing, excluded or broken; the message says what to do."""


class CaptureError(LayerSyncError, RuntimeError):
    """Hidden states that a training step needs were not captured, or cannot be used."""


class LayerSyncWarning(UserWarning):
    """A configuration that is allowed but probably not what was intended."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a hint with the known words nearest to an unknown one, or with all of them when none is near."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
