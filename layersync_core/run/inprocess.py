"""LayerSync in the current process: for notebooks, and for scripts that a launcher starts through LayerSync."""

from __future__ import annotations

import atexit
import builtins
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from layersync_core import _compat
from layersync_core.errors import CaptureError, ConfigError, LayerSyncError
from layersync_core.process_record import ProcessRecord
from layersync_core.run.settings import Settings, is_on, variables
from layersync_core.run.showing import show_as_without_us
from layersync_core.run.startup.sitecustomize import REACHED, Watch, imported, watch
from layersync_core.run.status import SETTINGS


def start(settings: Settings) -> None:
    """Switch LayerSync on in this process and in those it starts."""
    if is_on(settings):
        os.environ.update(variables(settings, os.environ, _settings_file))
        # Compared by name: the start-up hook's class is a different object, imported under another module name.
        if not any(type(finder).__name__ == Watch.__name__ for finder in sys.meta_path):
            watch(imported)
        if "torch" in sys.modules:
            from layersync_core.run.patches import adopt

            adopt()


def _settings_file() -> Path:
    folder, owner = tempfile.mkdtemp(prefix="layersync-settings-"), os.getpid()
    # A forked worker inherits this exit function, but the others still need the file.
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return Path(folder, SETTINGS)


def run_script(settings: Settings, words: Sequence[str]) -> int:
    """Run a script as ``python`` would, with LayerSync in this process.

    Args:
        settings: Settings of the run.
        words: ``SCRIPT ARGUMENTS`` or ``-m MODULE ARGUMENTS``.

    Returns:
        0; a script with another exit code exits by itself.

    Raises:
        ConfigError: The script does not exist.
        CaptureError: The script succeeded but trained nothing with LayerSync.
    """
    start(settings)
    with _recorded(settings) as record:
        code = _run_main(settings, words)
        record.end(code)
    return code


@contextmanager
def _recorded(settings: Settings) -> Iterator[ProcessRecord]:
    """Keep the process record of the first rank in the status folder, unless a parent keeps one."""
    folder = settings.launch.layersync_status_dir
    with ProcessRecord(Path(folder or os.curdir), "run") as record:
        if folder and is_on(settings) and REACHED not in os.environ and not int(os.environ.get("RANK") or 0):
            with suppress(OSError):
                Path(folder).mkdir(parents=True, exist_ok=True)
            record.begin()
        yield record


def _run_main(settings: Settings, words: Sequence[str]) -> int:
    main = ModuleType("__main__")
    if words[0] == "-m":
        source, spec, path = _module(words[1:])
        main.__dict__.update(__file__=path, __spec__=spec, __loader__=spec.loader, __package__=spec.parent)
        sys.argv[:], sys.path[0] = [path, *words[2:]], os.getcwd()
    else:
        path = os.path.join(os.getcwd(), words[0])
        source = _script(words[0])
        main.__dict__.update(__file__=path, __loader__=SourceFileLoader("__main__", path))
        sys.argv[:], sys.path[0] = list(words), os.path.dirname(os.path.realpath(path))
    main.__dict__.update(__builtins__=builtins)
    sys.modules["__main__"] = main
    try:
        code = compile(source, path, "exec", dont_inherit=True) if isinstance(source, bytes) else source
        exec(code, main.__dict__)  # noqa: S102
    except LayerSyncError:
        raise
    except SystemExit as exit:
        if exit.code not in (None, 0):
            raise
    except BaseException as error:
        show_as_without_us(error)
        sys.excepthook(type(error), error, error.__traceback__)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    if is_on(settings):
        _require_effect()
    return 0


def _script(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the script {path}: {error.strerror or error}") from None


def _module(words: Sequence[str]) -> tuple[Any, Any, str]:
    if not words:
        raise ConfigError("-m needs the name of a module")
    try:
        _, spec, code = _compat.module_details(words[0])
    except ImportError as error:
        raise ConfigError(f"cannot run the module {words[0]}: {error}") from None
    return code, spec, spec.origin


def _require_effect() -> None:
    if "torch" in sys.modules:
        from layersync_core.run.process import training

        status = training().journal.status
        if status.terms or status.over or status.measured:
            return
    raise CaptureError("the script ended without training a model with LayerSync")
