"""Where a command runs: the folder, the Python environment, the variables. Values of variables are never shown."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from layersync_core import ConfigError
from layersync_plugin_webui.jobs.commands import checked

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = "LAYERSYNC_RUN"
"""Prefix of the variables that tell processes which run they belong to; the page itself may be part of a run."""

# Like the command `layersync`: `python -m` would look for modules in the working folder first, and make
# `layersync run` act as a rank of a launcher.
_IMPORTS = "import sys; sys.path[:1] = [path for path in sys.path[:1] if path]; sys.argv[0] = 'layersync'; "
_MAIN = _IMPORTS + "from layersync_core.cli import main; sys.exit(main())"

_PATIENCE = 60


def working_folder(text: str) -> Path:
    """Return the folder that a command runs in; the page's own if none is given.

    Raises:
        ConfigError: There is no such folder.
    """
    try:
        folder = Path(checked(text.strip(), "the folder") or os.curdir).expanduser().absolute()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError):  # a user that does not exist
        pass
    raise ConfigError(f"{text} is not a folder; give the one that the command is to run in")


def check_variables(variables: Mapping[str, str]) -> None:
    """Refuse what cannot be an environment variable.

    Raises:
        ConfigError: A name or a value is impossible.
    """
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name):
            raise ConfigError(f"{name!r} cannot be the name of a variable; give letters, digits and underscores")
        checked(value, f"the value of {name}")


def variables_of(variables: Mapping[str, str], environment: str) -> tuple[str, dict[str, str]]:
    """Return the Python to start, and all variables of its process.

    Args:
        variables: Those that the user gave in addition to the page's own.
        environment: Folder of a Python environment; empty for the page's.

    Raises:
        ConfigError: The folder has no Python.
    """
    result = {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}
    result.setdefault("PYTHONUNBUFFERED", "1")  # the log is read while it is being written
    result.update(variables)
    if not environment.strip():
        if sys.prefix != sys.base_prefix:
            _activate(result, Path(sys.prefix))
        return sys.executable, result
    folder = Path(os.path.abspath(os.path.expanduser(checked(environment.strip(), "the environment"))))
    python = folder / "bin" / "python"
    if not os.access(python, os.X_OK) or python.is_dir():
        raise ConfigError(f"{folder} has no bin/python; give the folder of a Python environment, as ~/trainer/.venv")
    _activate(result, folder)
    return str(python), result


def layersync_of(python: str) -> list[str]:
    """Return the words that run a Python's ``layersync``, which need not be on its PATH."""
    return [python, "-c", _MAIN]


def require_layersync(python: str, variables: Mapping[str, str], folder: Path) -> None:
    """Ask a Python whether it has LayerSync.

    Raises:
        ConfigError: It hasn't, or doesn't answer.
    """
    remedy = f"{python} -m pip install layersync-core"
    try:
        asked = subprocess.run(
            [python, "-c", f"{_IMPORTS}import layersync_core.cli"],
            cwd=folder,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = error.strerror if isinstance(error, OSError) else f"no answer in {_PATIENCE} s"
        raise ConfigError(f"{python} does not start: {why}; give another environment") from None
    if asked.returncode:
        raise ConfigError(f"{python} has no layersync; {remedy}")


def _activate(variables: dict[str, str], folder: Path) -> None:
    """Do what ``activate`` does."""
    others = variables.get("PATH", os.defpath)
    variables.update(VIRTUAL_ENV=str(folder), PATH=os.pathsep.join([str(folder / "bin"), others]))
    variables.pop("PYTHONHOME", None)
