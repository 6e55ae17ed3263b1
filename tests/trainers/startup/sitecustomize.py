"""Shrinks a trainer's table of model sizes and watches its gradients, in an otherwise unedited trainer.

This folder is on PYTHONPATH; ``layersync run`` puts its own start-up hook before it, which lets this one run as well.
"""

import importlib.util
import os
import sys
from types import ModuleType
from typing import Any


class _After:
    """A finder that calls a function once a module has been imported."""

    def __init__(self, name: str, then: Any) -> None:
        self._name, self._then = name, then

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            self._then(module)

        loader.exec_module = exec_module
        return spec


def _main(trainer: str) -> None:
    # Nothing heavy before the trainer itself imports it.
    from trainer_tables import TABLES

    module, shrink = TABLES[trainer]

    def then(module: ModuleType) -> None:
        shrink(module)
        if "TRAINER_GRADIENTS" in os.environ:
            import trainer_gradients

            trainer_gradients.watch()

    sys.meta_path.insert(0, _After(module, then))


if "TRAINER" in os.environ:
    _main(os.environ["TRAINER"])
