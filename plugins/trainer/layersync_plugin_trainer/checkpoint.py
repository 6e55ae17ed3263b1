"""Checkpoint folders: written under a temporary name and renamed, with a manifest that shows whether one is complete.

``checkpoint-<step>/`` holds accelerate's state (weights, optimiser, schedule, random generators), LayerSync's own
state, ``trainer_state.json`` (settings and metrics so far), and, written last, ``manifest.json`` with the size and
checksum of every file and the identity of the run.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersync_core import ConfigError, libraries, save_states
from layersync_plugin_trainer.claiming import is_empty
from layersync_plugin_trainer.writing import partial_of, remove, replace, together, writing

if TYPE_CHECKING:
    from accelerate import Accelerator

    from layersync_core import Attachment

FORMAT = "layersync-checkpoint-1"
MANIFEST, STATE = "manifest.json", "trainer_state.json"
_AT_ONCE = 64 * 1024 * 1024
_UNNAMED = {"objective": "flow matching"}
"""Values of identity keys that checkpoints written by earlier versions lack."""
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, verified file by file.

    Attributes:
        folder: Where it is.
        step: Optimiser steps done.
        identity: What must be the same in a run that resumes it: family, model, processes and so on.
        settings: The settings of the run that wrote it, as given by its user.
        history: Metrics logged so far.
    """

    folder: Path
    step: int
    identity: Mapping[str, Any]
    settings: Mapping[str, Any]
    history: list[dict[str, float]]


def write(
    accelerator: Accelerator,
    sync: Attachment,
    folder: Path,
    step: int,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
    history: list[dict[str, float]],
    limit: int | None = None,
) -> Path:
    """Write ``checkpoint-<step>`` into a folder, on all ranks at once, and keep at most ``limit``.

    Returns:
        The checkpoint's folder.

    Raises:
        WriteError: A rank cannot write it; no part of it is left behind, and the other checkpoints are untouched.
    """
    target = folder / f"checkpoint-{step}"
    partial, first = partial_of(target), accelerator.is_main_process
    try:
        with together(accelerator), writing(target):
            if first:
                # Leftovers of a killed run.
                for unfinished in folder.glob(".checkpoint-*.partial"):
                    remove(unfinished)
                partial.mkdir(parents=True)
        with together(accelerator), writing(target):
            accelerator.save_state(str(partial), safe_serialization=True)
        with together(accelerator), writing(target):
            if first:
                _complete(partial, sync, step, identity, settings, history)
                replace(partial, target)
    finally:
        if first:
            remove(partial)
    if first and limit is not None:
        for old in found(folder)[:-limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return target


def _complete(
    partial: Path,
    sync: Attachment,
    step: int,
    identity: Mapping[str, Any],
    settings: Mapping[str, Any],
    history: list[dict[str, float]],
) -> None:
    """Add the run's own state and the manifest to accelerate's files."""
    save_states(partial, {"": sync.state_dict()})
    state = {"step": step, "settings": dict(settings), "history": history}
    (partial / STATE).write_text(json.dumps(state, indent=1))
    files = {file.name: _fingerprint(file) for file in sorted(partial.iterdir())}
    pairs = [f"{pair.student} -> {pair.teacher}" for pair in sync.pairs]
    manifest = {
        "format": FORMAT,
        "step": step,
        "identity": dict(identity),
        "pairs": pairs,
        "distributions": sync.distributions(),
        "libraries": libraries(),
        "files": files,
    }
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))


def locate(resume: str, folder: Path) -> Checkpoint | None:
    """Return the verified checkpoint to resume from; None when ``latest`` finds an empty or absent folder.

    Args:
        resume: ``latest`` or a checkpoint's folder.
        folder: Output folder, where ``latest`` looks.

    Raises:
        ConfigError: There is no such checkpoint, it is torn, or this trainer didn't write it.
    """
    if resume != "latest":
        return verify(Path(resume))
    candidates = found(folder)
    if not candidates:
        if folder.exists() and not is_empty(folder):
            raise ConfigError(f"{folder} is not empty but has no checkpoint to resume from; choose another output_dir")
        return None
    try:
        return verify(candidates[-1])
    except ConfigError as error:
        raise ConfigError(f"{error}; {_newest_whole(candidates[:-1])}") from None


def verify(folder: Path, by_content: bool = True) -> Checkpoint:
    """Check every file of a checkpoint against its manifest, and return it.

    Args:
        folder: The checkpoint's folder.
        by_content: Read the files and compare checksums; otherwise only sizes are compared, which is fast.

    Raises:
        ConfigError: It is missing, torn, altered or foreign.
    """
    try:
        return _verified(folder, by_content)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from None


def _verified(folder: Path, by_content: bool) -> Checkpoint:
    if not folder.is_dir():
        raise ConfigError(f"resume_from_checkpoint: {folder} is not a folder; give a checkpoint's folder, or latest")
    if not (folder / MANIFEST).is_file():
        raise ConfigError(
            f"{folder} has no {MANIFEST}: it is torn (writing it was interrupted) or not a checkpoint of layersync"
        )
    if not by_content and max((folder / name).stat().st_size for name in (MANIFEST, STATE)) > _AT_ONCE:
        raise ConfigError(f"{folder} has a {MANIFEST} or {STATE} that is too large to be read at once")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (ValueError, RecursionError):
        raise ConfigError(f"{folder} is torn: its {MANIFEST} is not JSON") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ConfigError(f"{folder} is not a checkpoint of this trainer: its {MANIFEST} does not say {FORMAT}")
    lacking = [key for key in ("step", "identity", "files") if key not in manifest]
    if lacking or not isinstance(manifest["files"], dict) or STATE not in manifest["files"]:
        raise ConfigError(f"{folder} is torn: its {MANIFEST} lacks {lacking[0] if lacking else STATE}")
    step, identity = manifest["step"], manifest["identity"]
    if type(step) is not int or step < 0 or not isinstance(identity, dict):
        raise ConfigError(f"{folder} is damaged: its {MANIFEST} has step {step!r} and identity {identity!r}")
    present = {path.name for path in folder.iterdir() if path.is_file()}
    if unknown := present - manifest["files"].keys() - {MANIFEST}:
        raise ConfigError(f"{folder} is damaged: its {MANIFEST} does not list {', '.join(sorted(unknown))}")
    for name, expected in manifest["files"].items():
        if name in ("", ".", "..") or any(separator in name for separator in "/\\"):
            raise ConfigError(
                f"{folder} is damaged: its {MANIFEST} names {name!r}, which is not a file of a checkpoint"
            )
        if not isinstance(expected, dict) or expected.keys() != {"size", "crc32"}:
            raise ConfigError(f"{folder} is damaged: its {MANIFEST} has no size and checksum of {name}")
        file = folder / name
        if name not in present:
            raise ConfigError(f"{folder} is torn: {name} is missing")
        if file.stat().st_size != expected["size"]:
            raise ConfigError(f"{folder} is torn: {name} has {file.stat().st_size} bytes instead of {expected['size']}")
        if by_content and _fingerprint(file) != expected:
            raise ConfigError(f"{folder} is damaged: the content of {name} is not what was written")
    state = _state(folder)
    if state["step"] != step:
        raise ConfigError(f"{folder} is damaged: its {MANIFEST} says step {step}, its {STATE} {state['step']}")
    return Checkpoint(folder, step, identity, state["settings"], state["history"])


def _state(folder: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
        rows = state["history"]
        numbers = [number for row in rows for number in (row["step"], *row.values())]
        fits = "step" in state and isinstance(state["settings"], dict) and isinstance(rows, list)
        fits = fits and all(isinstance(number, (int, float)) for number in numbers)
    except (ValueError, TypeError, KeyError, RecursionError):
        fits = False
    if not fits:
        raise ConfigError(f"{folder} is damaged: its {STATE} is not what a run of this trainer writes")
    return state


def check_identity(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """Refuse to resume from a checkpoint of another run.

    Raises:
        ConfigError: Something that must be the same differs; the error names the first difference and both values.
    """
    for key, now in identity.items():
        before = checkpoint.identity.get(key, _UNNAMED.get(key))
        if before != now:
            detail = _difference(before, now)
            raise ConfigError(f"{checkpoint.folder} is of another run: {key} {detail}; choose another output_dir")


def found(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest first, complete or not."""
    if not folder.is_dir():
        return []
    steps = {path: match for path in folder.iterdir() if (match := _NAME.fullmatch(path.name)) and path.is_dir()}
    return sorted(steps, key=lambda path: int(steps[path][1]))


def is_whole(folder: Path) -> bool:
    """Return whether a folder is a complete checkpoint."""
    try:
        verify(folder)
    except ConfigError:
        return False
    return True


def _newest_whole(candidates: list[Path]) -> str:
    for candidate in filter(is_whole, reversed(candidates)):
        return f"the newest whole one is {candidate}: give it as resume_from_checkpoint"
    return "there is no whole one beside it"


def _difference(before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        shown = ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in names[:2])
        return f"differs in {len(names)} place(s): {shown}"
    return f"was {before!r}, is {now!r}"


def _fingerprint(file: Path) -> dict[str, int]:
    checksum, size = 0, 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            checksum, size = zlib.crc32(chunk, checksum), size + len(chunk)
    return {"size": size, "crc32": checksum}
