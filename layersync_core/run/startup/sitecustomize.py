"""Start-up hook: prepare for torch and the libraries around it, then let the user's own ``sitecustomize`` run.

It runs in every Python process below ``layersync run``, most of which never train anything, so it imports nothing of
ours, nor anything heavy, until one of the watched libraries is imported.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # that of typing would cost every Python process its import
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

VARIABLE = "LAYERSYNC_RUN"
REACHED = "LAYERSYNC_RUN_REACHED"
_INSTALL = ("layersync_core.run.patches", "install")
WATCHED = frozenset(
    {
        "torch",
        "accelerate",
        "deepspeed",
        "lightning",
        "lightning_fabric",
        "simpletuner.helpers.training.crepa",
        "simpletuner.helpers.training.layersync",
        "torch.utils.tensorboard",
    }
)


class Watch:
    """A finder that calls a function after each of the watched libraries has been imported."""

    def __init__(self, after: Callable[[str], None]) -> None:
        self._after = after
        self._busy: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find a watched library as the other finders do, with a loader that tells when it is done."""
        if name not in WATCHED or name in self._busy:
            return None
        from importlib.util import find_spec

        self._busy.add(name)
        try:
            spec = find_spec(name)
        finally:
            self._busy.discard(name)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            loader: Any = _Loader(spec.loader, lambda: self._after(name))
            spec.loader = loader
        return spec


class _Loader:
    """A loader that steps back once the module has run, so that nobody meets it afterwards."""

    def __init__(self, loader: Any, after: Callable[[], None]) -> None:
        self._loader, self._done = loader, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> Any:
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._done()


def watch(after: Callable[[str], None]) -> None:
    """Call a function with the name of each watched library: now if it is imported already, else once it is."""
    sys.meta_path.insert(0, Watch(after))
    for name in sorted(WATCHED & sys.modules.keys(), key=lambda name: name != "torch"):
        after(name)


def imported(name: str) -> None:
    """Hand a library over to layersync."""
    # A module of ours that is importing torch right now cannot be used yet. Where it is needed it is imported anew, and
    # that one is what the import in progress returns in the end.
    ours = {key: module for key, module in sys.modules.items() if key.startswith("layersync_core.")}
    unready = {key: module for key, module in ours.items() if getattr(module.__spec__, "_initializing", False)}
    for key in unready:
        del sys.modules[key]
    from importlib import import_module

    try:
        install = import_module(_INSTALL[0]).__dict__[_INSTALL[1]]
    except ImportError as error:
        raise ImportError(
            f"layersync run: {sys.executable} cannot import layersync_core ({error}), so this program would train "
            "without LayerSync; pip install layersync-core and the family's adapter into its environment"
        ) from None
    finally:
        for key, module in unready.items():
            sys.modules.setdefault(key, module)
    install(name)


def _touch(path: str) -> None:
    # So that the parent can tell a program that never trained from one that this hook did not reach.
    try:  # noqa: SIM105 - contextlib would cost every Python process its import
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o644))
    except OSError:
        pass


def _chain() -> None:
    """Import the ``sitecustomize`` that would have been imported without us."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or os.curdir) != here]
    ours = sys.modules.pop("sitecustomize", None)
    try:
        __import__("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        if ours is not None:
            sys.modules["sitecustomize"] = ours


def _main() -> None:
    try:
        if os.environ.get(VARIABLE):
            _touch(os.environ.get(REACHED, ""))
            watch(imported)
    finally:
        _chain()


if __name__ == "sitecustomize":
    _main()
