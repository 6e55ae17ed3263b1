"""The classes of a package that no adapter covers, listed in a process of its own, which a module may end."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.classes.finding import NO_DENOISERS, Module, claimed, look_into, modules, refused
from tests.day_zero.processes import python

ROOT = Path(__file__).resolve().parents[2]


def uncovered(package: str, seconds: float) -> Iterator[Module]:
    """Yield those modules of a package that have classes without an adapter, with these, or that cannot be imported.

    Args:
        package: Its name.
        seconds: Time of a process that imports its modules.

    Raises:
        ImportError: The package itself cannot be imported.
    """
    known = claimed()
    for found in _modules(package, seconds):
        classes = tuple(kind for kind in found.classes if not (kind in known or kind in NO_DENOISERS or refused(kind)))
        if classes or found.error:
            yield Module(found.name, classes, found.error)


def _modules(package: str, seconds: float) -> Iterator[Module]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    left: list[str] = []
    with TemporaryDirectory() as folder:
        file = Path(folder, "modules")
        while True:
            file.write_text("")
            said = python("-m", __name__, package, str(file), *left, folder=ROOT, path=path, seconds=seconds)
            *whole, _ = file.read_text().split("\n")
            lines = [*map(json.loads, whole)]
            if not lines:
                raise ImportError(f"{package} cannot be listed: {said.last() or said.strange()}")
            names, *read = lines
            yield from (Module(one["name"], tuple(one["classes"]), one["error"]) for one in read)
            left = names[len(read) :]
            if not left:
                return
            # The process was ended by the module after the last one that it reported.
            yield Module(left.pop(0), error=said.strange() or "it ended the process that imported it")
            if not left:
                return


def tell(package: str, file: str, *names: str) -> None:
    """Write one line for all modules and one for each as it is imported."""
    listed = list(names) or modules(package)
    with Path(file).open("a") as out:
        print(json.dumps(listed), file=out, flush=True)
        for name in listed:
            print(json.dumps(asdict(look_into(name))), file=out, flush=True)


if __name__ == "__main__":
    tell(*sys.argv[1:])
