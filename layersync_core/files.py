"""Files that users pass in, and LayerSync's own files in folders that others may write to."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from layersync_core.errors import ConfigError

# Windows has no such flag; creating a link there takes a special right.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)

_KINDS = {".yaml": "YAML", ".yml": "YAML", ".toml": "TOML"}


def read_settings(path: str | Path) -> dict[str, Any]:
    """Read a settings file: YAML or TOML by the extension, where a reader is installed, else JSON.

    Raises:
        ConfigError: The file cannot be read, or doesn't hold a mapping.
    """
    return parse_settings(_text_of(path, kind_of(path)), str(path))


def kind_of(name: str | Path) -> str:
    """Return the format of a settings file by its extension: YAML, TOML or JSON."""
    return _KINDS.get(Path(name).suffix.lower(), "JSON")


def parse_settings(text: str, name: str) -> dict[str, Any]:
    """Return the settings in the text of a file, as ``read_settings`` does.

    Args:
        text: What is in the file.
        name: Its name, whose extension determines the format.

    Raises:
        ConfigError: The text cannot be read, or doesn't hold a mapping.
    """
    kind = kind_of(name)
    if kind == "YAML":
        return _parse_yaml(text, name)
    if kind == "TOML":
        return _parse_toml(text, name)
    return parse_json(text, name, "is not valid JSON (YAML and TOML are recognised by .yaml, .yml and .toml)")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: The file cannot be read, or as in ``parse_json``.
    """
    return parse_json(_text_of(path, "JSON"), str(path))


def _text_of(path: str | Path, kind: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not valid {kind}: {error}") from None


def parse_json(text: str, source: str, fault: str = "is not valid JSON") -> dict[str, Any]:
    """Return the JSON object in a text.

    Args:
        text: The JSON.
        source: What messages call it.
        fault: What messages say about a text that cannot be read.

    Raises:
        ConfigError: It isn't JSON, holds something other than an object, or an object in it has a key twice.
    """
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: _without_twins(pairs, source))
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} {fault}: {error}") from None
    return _settings_in(content, source, "JSON")


def _settings_in(content: Any, source: str, kind: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError(f"{source} holds a {kind} {type(content).__name__}; expected an object of settings")
    return content


def _reader(source: str, modules: Sequence[str], package: str) -> Any:
    # Core requires no reader: most environments have one, and every setting can be written as JSON.
    for module in modules:
        try:
            return import_module(module)
        except ImportError:
            continue
    raise ConfigError(f"reading {source} needs {package}; pip install {package}, or write the settings as JSON")


def _parse_toml(text: str, source: str) -> dict[str, Any]:
    reader = _reader(source, ("tomllib", "tomli"), "tomli")
    try:
        return _settings_in(reader.loads(text), source, "TOML")
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from None


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    yaml = _reader(source, ("yaml",), "pyyaml")
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        for mapping in _mappings(yaml, root):
            _without_twins([(key.value, None) for key, _ in mapping.value if key.tag.endswith(":str")], source)
        content = None if root is None else loader.construct_document(root)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader is not None:
            loader.dispose()
    return _settings_in(content, source, "YAML")


def _mappings(yaml: Any, root: Any) -> Iterator[Any]:
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _without_twins(pairs: Sequence[tuple[str, Any]], source: str) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:  # Python's reader would silently take the last one
            raise ConfigError(f"{source} has the key {key!r} twice; keep one")
        content[key] = value
    return content


def replace_file(path: Path, content: str | bytes, mode: int = 0o600) -> None:
    """Write a file atomically and without following a symbolic link; by default only this user can read it.

    Raises:
        OSError: It cannot be written.
    """
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _NO_LINK, mode), "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_own(path: Path, limit: int) -> bytes:
    """Read a small file that this package wrote, without following a symbolic link or blocking on a pipe.

    Raises:
        OSError: It cannot be read, isn't a plain file, or is larger than ``limit`` bytes.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | _NO_LINK | _NO_WAIT), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
            raise OSError(errno.EINVAL, "not a small plain file", str(path))
        return file.read(limit)


def append_to_file(path: Path, text: str) -> None:
    """Append to a file, without following a symbolic link.

    Raises:
        OSError: It cannot be written.
    """
    with os.fdopen(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | _NO_LINK, 0o644), "a") as file:
        file.write(text)
