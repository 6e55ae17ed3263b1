"""Which part of a request, besides the settings, an error is about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from layersync_core import ConfigError


class PlacedError(ConfigError):
    """An error about something that isn't a setting.

    Attributes:
        about: ``name``, ``command``, ``directory``, ``environment`` or ``variable``.
    """

    def __init__(self, message: str, about: str) -> None:
        super().__init__(message)
        self.about = about


@contextmanager
def about(what: str) -> Iterator[None]:
    """Add to an error in the block what it is about.

    Raises:
        PlacedError: Instead of a ConfigError.
    """
    try:
        yield
    except PlacedError:
        raise
    except ConfigError as error:
        raise PlacedError(str(error), what) from None
