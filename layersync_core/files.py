"""Files that users hand over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from layersync_core.errors import ConfigError


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: The file cannot be read, is no JSON, or holds something else than an object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a JSON {type(content).__name__}; expected an object of settings")
    return content
