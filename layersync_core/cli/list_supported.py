"""``layersync list-supported``: every known family, who provides it, and what to do about the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from layersync_core.entrypoints import LOAD_VARIABLE, Provider, describe_failure, foreign
from layersync_core.errors import LayerSyncError
from layersync_core.families import registry
from layersync_core.families.known import KNOWN, distribution_of
from layersync_core.families.refusals import REFUSALS

_NAME = "list-supported"


@dataclass(frozen=True)
class Row:
    """A family in the listing; ``state`` is installed, excluded, conflict, broken, not installed or refused."""

    family: str
    models: str
    distribution: str
    version: str
    state: str
    detail: str


def register(app: Any) -> None:
    """Register the command."""
    import typer

    @app.command(_NAME)  # type: ignore[untyped-decorator]
    def list_supported(
        as_json: bool = typer.Option(False, "--json", help="print JSON"),
        check: bool = typer.Option(False, "--check", help="load each adapter and run its tiny model"),
    ) -> int:
        """List the model families: installed, known but not installed, refused."""
        return run(as_json, check)


def run(as_json: bool = False, check: bool = False) -> int:
    """Print the listing; return 2 when a check found a broken adapter."""
    rows = families(check)
    print(json.dumps([asdict(row) for row in rows], indent=2) if as_json else table(rows))
    return 2 if check and any(row.state in ("broken", "conflict") for row in rows) else 0


def families(check: bool = False) -> list[Row]:
    """Return a row per family: installed ones first, then known ones, then refused ones.

    Args:
        check: Also load each installed adapter and run its tiny model.
    """
    installed = registry.installed()
    rows = [_installed_row(family, found, check) for family, found in installed.items()]
    rows += [
        Row(
            family, known.models, distribution_of(family), "", "not installed", f"pip install {distribution_of(family)}"
        )
        for family, known in KNOWN.items()
        if family not in installed
    ]
    rows += [
        Row(family, refusal.models, "", "", "refused", refusal.reason)
        for family, refusal in REFUSALS.items()
        if family not in installed
    ]
    return rows


family_rows = families
"""Its name in the public face."""


def _installed_row(family: str, found: list[Provider], check: bool) -> Row:
    known = KNOWN.get(family) or REFUSALS.get(family)
    state, detail = "installed", ""
    if len(found) > 1:
        state, detail = "conflict", "claimed by more than one distribution; uninstall all but one"
    elif not found[0].allowed:
        state, detail = "excluded", f"{LOAD_VARIABLE} leaves it out"
    elif check:
        state, detail = _checked(family)
    elif family in REFUSALS:
        detail = f"LayerSync itself refuses it: {REFUSALS[family].reason}"
    return Row(
        family,
        known.models if known else "",
        " and ".join(item.distribution for item in found),
        " and ".join(item.version for item in found),
        state,
        detail,
    )


def _checked(family: str) -> tuple[str, str]:
    # Imported by name: only a check needs torch.
    try_family = import_module("layersync_core.cli.trial").try_family
    try:
        with foreign():
            return "installed", try_family(family)
    except LayerSyncError as error:
        return "broken", str(error)
    except Exception as error:  # a third party's tiny model may raise anything, which is shown in its row
        return "broken", f"its tiny model fails: {describe_failure(error)}"


def table(rows: Sequence[Row]) -> str:
    """Return the listing as aligned text."""
    cells = [("family", "models", "distribution", "version", "state")]
    cells += [
        (
            row.family,
            row.models,
            row.distribution,
            row.version,
            f"{row.state}: {row.detail}" if row.detail else row.state,
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths[:-1]) + "  -----")
    return "\n".join(lines)


def markdown(rows: Sequence[Row]) -> str:
    """Return families, models and what to do as a Markdown table, the same on every machine."""
    lines = ["| family | models | adapter |", "| --- | --- | --- |"]
    for row in sorted(rows, key=lambda row: (row.state == "refused", row.family)):
        adapter = f"refused: {row.detail}" if row.state == "refused" else f"`pip install {row.distribution}`"
        lines.append(f"| `{row.family}` | {row.models} | {adapter} |")
    return "\n".join(lines)
