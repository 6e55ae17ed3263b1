"""The report of a run for download: what its page shows, in one file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from layersync_core import Arm, Picture, Report, Series, printable, render_report
from layersync_plugin_webui import language
from layersync_plugin_webui.runs.curves import Curve, Store
from layersync_plugin_webui.runs.facts import read_object, settings
from layersync_plugin_webui.runs.files import entries, is_plain, read_part
from layersync_plugin_webui.runs.finding import ARMS, Finder, Run
from layersync_plugin_webui.runs.samples import KINDS, samples
from layersync_plugin_webui.runs.state import state_of

COMPARISON = "compare.json"
_OF_A_COMPARISON = ("compare_samples.png", "compare.png")
_STATUS = "layersync_status_"

MOST_PICTURES = 6
LARGEST_PICTURES = 8 * 1024 * 1024
"""Bytes of all pictures together, since the file should be small enough to be mailed."""


def report_of(run: Run, finder: Finder, store: Store, masked: Callable[[str], str] = str) -> str:
    """Return the report of a run in the language of this request; for an arm of a comparison, the comparison's.

    Args:
        run: The run.
        finder: Finds the other arm.
        store: Store of the curves.
        masked: Removes from a text what must not be shown.
    """
    arms = _arms(run, finder)
    several = len(arms) > 1
    first, folder = arms[0], arms[0].folder.parent if several else run.folder
    state = state_of(run)
    pictures, left_out = _pictures(folder, several)
    report = Report(
        name=run.name.rpartition("/")[0] or printable(folder.name) if several else run.name,
        state=language.gettext(state.label),
        record=_masked(settings(first.folder), masked),
        arms=[Arm(arm.folder.name if several else "", _series(store.of(arm))) for arm in arms],
        pictures=pictures,
        left_out=left_out,
        comparison=_masked(read_object(folder / COMPARISON), masked) if several else {},
        notes=[masked(line) for line in _targets(run.process)],
        began=state.since,
        seconds=state.seconds,
        total_steps=state.total_steps,
    )
    return render_report(report, language.gettext, language.current().tag)


def _masked(value: Any, masked: Callable[[str], str], depth: int = 20) -> Any:
    if isinstance(value, str) or not depth:
        return masked(value) if depth else "…"
    if isinstance(value, dict):
        return {masked(key): _masked(inner, masked, depth - 1) for key, inner in value.items()}
    return [_masked(inner, masked, depth - 1) for inner in value] if isinstance(value, list) else value


def file_name(run: Run) -> str:
    """Return the file's name, without characters that are special in a shell, a header or a file system."""
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", run.name).strip("-.")[:80]
    return f"layersync-{plain or 'run'}.html"


def _arms(run: Run, finder: Finder) -> list[Run]:
    """Return the arms of the comparison that a run is part of, or else only the run."""
    if run.folder.name not in ARMS or run.process == run.folder:
        return [run]
    beside = [
        other for other in finder.runs() if other.folder.parent == run.folder.parent and other.folder.name in ARMS
    ]
    return sorted(beside, key=lambda arm: ARMS.index(arm.folder.name)) or [run]


def _series(curves: dict[str, Curve]) -> dict[str, Series]:
    return {name: Series.of(zip(curve.steps, curve.values, strict=True)) for name, curve in curves.items()}


def _pictures(folder: Path, several: bool) -> tuple[list[Picture], int]:
    """Return the pictures that fit, spread over the steps, and how many are left out."""
    found: list[tuple[str, Path, int | None]] = [(item.name, item.path, item.step) for item in samples(folder)]
    if several:
        names = {entry.name for entry in entries(folder) if is_plain(entry)}
        found = [(name, folder / name, None) for name in _OF_A_COMPARISON if name in names]
    every = max(1, -(-len(found) // MOST_PICTURES))
    pictures, room = [], LARGEST_PICTURES
    for name, path, step in found[::-1][::every]:  # the last one always
        try:
            data, about = read_part(path, 0, room)
        except OSError:
            continue
        if about.st_size <= room:
            pictures.append(Picture(name, KINDS[path.suffix.lower()], data, step))
            room -= len(data)
    return pictures[::-1], len(found) - len(pictures)


def _targets(folder: Path) -> Iterator[str]:
    """Return what ``layersync run`` says about the models that were trained."""
    told: set[str] = set()
    for entry in entries(folder)[:200]:
        if entry.name.startswith(_STATUS) and entry.name.endswith(".json") and is_plain(entry):
            targets = read_object(Path(entry.path)).get("targets")
            told.update(str(target)[:500] for target in (targets[:8] if isinstance(targets, list) else ()))
    yield from sorted(told)[:8]
