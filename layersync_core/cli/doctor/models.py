"""A model: which family it belongs to, and how many blocks it has."""

from __future__ import annotations

from layersync_core.cli.doctor.findings import Finding
from layersync_core.cli.meta import model_of
from layersync_core.errors import LayerSyncError
from layersync_core.families.asking import blocks_of


def look(name: str, family: str | None) -> Finding:
    """Return what is known about a model without its weights."""
    try:
        named = model_of(name, family)
        blocks = blocks_of(named.adapter, named.model)
    except LayerSyncError as error:
        return Finding("model", name, "wrong", str(error))
    return Finding("model", name, "good", f"{named.title}, family {named.adapter.family}, {len(blocks)} blocks")
