"""Files that users hand over, and files of ours in folders that others may write to."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layersync_core.errors import ConfigError

# Windows has no such flag; there a link takes the right to make one.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: The file cannot be read, or as in ``parse_json``.
    """
    try:
        return parse_json(Path(path).read_text(encoding="utf-8-sig"), str(path))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None


def parse_json(text: str, source: str, fault: str = "is not valid JSON") -> dict[str, Any]:
    """Return the JSON object in a text.

    Args:
        text: The JSON.
        source: What the messages call it.
        fault: What they say of a text that cannot be read.

    Raises:
        ConfigError: It is no JSON, holds something else than an object, or an object in it has a key twice.
    """
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: _without_twins(pairs, source))
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} {fault}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{source} holds a JSON {type(content).__name__}; expected an object of settings")
    return content


def _without_twins(pairs: Sequence[tuple[str, Any]], source: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:  # Python's reader would silently take the last one
            raise ConfigError(f"{source} has the key {key!r} twice; keep one")
        content[key] = value
    return content


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file for this user alone (mode 600), at once and through no symbolic link.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _NO_LINK, 0o600), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_own(path: Path, limit: int) -> bytes:
    """Read a small file that this package wrote, through no symbolic link and waiting for no pipe.

    Raises:
        OSError: It cannot be read, is no plain file, or is larger than ``limit`` bytes.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | _NO_LINK | _NO_WAIT), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            raise OSError(errno.EINVAL, "no small plain file", str(path))
        return file.read(limit)


def append_to_file(path: Path, text: str) -> None:
    """Write at the end of a file, through no symbolic link.

    Raises:
        OSError: It cannot be written.
    """
    with os.fdopen(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | _NO_LINK, 0o644), "a") as file:
        file.write(text)
