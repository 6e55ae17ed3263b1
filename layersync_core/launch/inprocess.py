"""LayerSync in this very process: for notebooks, and for scripts that a launcher starts through us."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from layersync_core.errors import CaptureError, ConfigError, LayerSyncError
from layersync_core.launch.settings import Settings, is_on, variables
from layersync_core.launch.startup.sitecustomize import Watch, imported, watch


def start(settings: Settings) -> None:
    """Switch LayerSync on in this process and in those it starts."""
    if is_on(settings):
        os.environ.update(variables(settings, os.environ))
        # The start-up hook's class is another one: it was imported by another name.
        if not any(type(finder).__name__ == Watch.__name__ for finder in sys.meta_path):
            watch(imported)
        if "torch" in sys.modules:
            from layersync_core.launch.patches import adopt

            adopt()


def run_script(settings: Settings, words: Sequence[str]) -> int:
    """Run a script as ``python`` would, with LayerSync in this process.

    Args:
        settings: Of the run.
        words: ``SCRIPT ARGUMENTS`` or ``-m MODULE ARGUMENTS``.

    Returns:
        0; a script that exits otherwise does so by itself.

    Raises:
        ConfigError: There is no such script.
        CaptureError: The script ended well but trained nothing with LayerSync.
    """
    start(settings)
    if words[0] == "-m":
        code, name, path = _module(words[1:])
        arguments = words[2:]
    else:
        code, name, path = _script(words[0]), None, words[0]
        arguments = words[1:]
    main = ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __spec__=name)
    sys.modules["__main__"] = main
    sys.argv[:] = [path, *arguments]
    sys.path[0] = os.getcwd() if words[0] == "-m" else str(Path(path).resolve().parent)
    try:
        exec(code, main.__dict__)  # noqa: S102
    except LayerSyncError:
        raise
    except SystemExit as exit:
        if exit.code not in (None, 0):
            raise
    except Exception as error:
        # The frames above are ours; the script's own traceback is what a user needs.
        error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    if is_on(settings):
        _require_effect()
    return 0


def _script(path: str) -> Any:
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the script {path}: {error.strerror or error}") from None
    return compile(source, path, "exec")


def _module(words: Sequence[str]) -> tuple[Any, Any, str]:
    import runpy

    if not words:
        raise ConfigError("-m needs the name of a module")
    try:
        # What `python -m` itself uses to find the module or its __main__.
        _, spec, code = runpy._get_module_details(words[0])  # type: ignore[attr-defined]
    except ImportError as error:
        raise ConfigError(f"cannot run the module {words[0]}: {error}") from None
    return code, spec, spec.origin


def _require_effect() -> None:
    from layersync_core.launch.patches import training

    status = training().status
    if not status.terms and not status.over:
        raise CaptureError("the script ended without training a model with LayerSync")
