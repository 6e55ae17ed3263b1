"""Start-up hook: watch for torch and the libraries around it, then run the user's own ``sitecustomize``.

It runs in every Python process below ``layersync run``, most of which never train anything, so it imports nothing from
layersync, and nothing heavy, until one of the watched libraries is imported.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # importing typing for it would slow down every Python process
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

VARIABLE = "LAYERSYNC_RUN"
REACHED = "LAYERSYNC_RUN_REACHED"
DOCTOR = "LAYERSYNC_RUN_DOCTOR"
"""Variable naming a file: write into it what is there when torch is imported, and exit instead of training."""
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
        """Find a watched library with the other finders, wrapping its loader to learn when the import is done."""
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
    """A loader that removes itself once the module has run, so that nothing sees it afterwards."""

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
    """Call a function with the name of each watched library: now if it is already imported, else once it is."""
    sys.meta_path.insert(0, Watch(after))
    for name in sorted(WATCHED & sys.modules.keys(), key=lambda name: name != "torch"):
        after(name)


def imported(name: str) -> None:
    """Let layersync patch a library."""
    if name == "torch" and os.environ.get(DOCTOR):
        _tell_the_doctor(os.environ[DOCTOR])
    # A layersync module that is just importing torch cannot be used yet. Where needed it is imported again, and the
    # import in progress then returns that second module.
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


def _tell_the_doctor(path: str) -> None:
    from json import dumps

    said = {"python": sys.executable, "torch": str(sys.modules["torch"].__version__)}
    try:
        from layersync_core import __version__

        said["layersync"] = __version__
    except ImportError as error:
        said["error"] = f"{sys.executable} has torch and cannot import layersync_core ({error}); pip install it there"
    with open(f"{path}.part", "w", encoding="utf-8") as file:
        file.write(dumps(said))
    os.replace(f"{path}.part", path)
    # Neither the program nor a script around it may go on; the doctor ends all of them within this time.
    from time import sleep

    sleep(10)
    os._exit(1)


def _touch(path: str) -> None:
    # Lets the parent distinguish a program that never trained from one that this hook did not reach.
    try:  # noqa: SIM105 - importing contextlib would slow down every Python process
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o644))
    except OSError:
        pass


def _chain() -> None:
    """Import the ``sitecustomize`` that would have been imported without this one."""
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
