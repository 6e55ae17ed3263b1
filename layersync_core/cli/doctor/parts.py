"""Adapters and plugins: where they come from, and whether they work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from layersync_core.cli.doctor.findings import Finding, State
from layersync_core.cli.list_supported import families
from layersync_core.entrypoints import KNOWN_PLUGINS, LOAD_VARIABLE, PLUGINS, providers
from layersync_core.losses.plugins import third_parties

_SHOWN = 5
"""Names of a line."""
_STATES: dict[str, State] = {"installed": "good", "excluded": "note", "conflict": "wrong", "broken": "wrong"}


def look() -> Iterator[Finding]:
    """Yield every installed adapter, after a step of its tiny model, and every plugin."""
    rows = [row for row in families(check=True) if row.state in _STATES]
    for row in rows:
        if row.state != "excluded":
            yield Finding("adapter", row.family, _STATES[row.state], row.detail, row.version, row.distribution)
    if left_out := [row.family for row in rows if row.state == "excluded"]:
        yield _left_out("adapter", left_out)
    if not rows:
        yield Finding(
            "adapter", "none", "note", "layersync list-supported lists those that exist; or give the family auto"
        )
    installed = providers(PLUGINS)
    plugins = third_parties()
    plugins.config_models()  # clashes are found when the models are requested
    for found in installed:
        failure = plugins.broken.get(found.title, "")
        if failure or found.allowed:
            state: State = "wrong" if failure else "good"
            yield Finding("plugin", found.name, state, failure, found.version, found.distribution)
    if names := [found.name for found in installed if not found.allowed and found.title not in plugins.broken]:
        yield _left_out("plugin", names)
    for name in sorted({*KNOWN_PLUGINS} - {found.name for found in installed}):
        yield Finding("plugin", name, "note", f"not installed; pip install {KNOWN_PLUGINS[name]}")


def _left_out(about: str, names: Sequence[str]) -> Finding:
    """Return one finding for all that LAYERSYNC_LOAD leaves out."""
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return Finding(about, shown, "note", f"{LOAD_VARIABLE} leaves {'it' if len(names) == 1 else 'them'} out")
