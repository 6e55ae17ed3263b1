"""Stands in for datasets: the Cosmos script sets its verbosity and uses nothing else of it."""

from types import SimpleNamespace


def _nothing() -> None:
    pass


utils = SimpleNamespace(
    logging=SimpleNamespace(set_verbosity_warning=_nothing, set_verbosity_error=_nothing),
)
