"""Errors a user can meet. Each carries one line fit for a terminal: what was asked, what is valid, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LayerSyncError(Exception):
    """Base of every error that layersync raises on purpose; its message is one line, whatever a user's text has."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


class ConfigError(LayerSyncError, ValueError):
    """A setting, a shape or a combination of them that cannot work."""


class UnsupportedFamilyError(LayerSyncError):
    """A known model family whose hidden states cannot be aligned."""


class UnknownFamilyError(LayerSyncError, LookupError):
    """A model class that no installed adapter describes."""


class AdapterNotInstalledError(LayerSyncError):
    """A known family whose adapter is missing, excluded or broken; the message is the remedy."""


class CaptureError(LayerSyncError, RuntimeError):
    """Hidden states that a training step needs were not captured, or cannot be used."""


class LayerSyncWarning(UserWarning):
    """A configuration that is allowed but probably not what was meant."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the known words nearest to one that is not, or all of them when none is near."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
