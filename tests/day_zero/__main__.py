"""``python -m tests.day_zero``: the installed diffusers' classes without an adapter, and how far drafts of one come."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import importlib_metadata

from tests.classes.finding import PACKAGE
from tests.day_zero.drafts import HEAD, Draft, draft
from tests.day_zero.listing import uncovered

SECONDS = 600.0
COUNTED = (("drafted", "yes"), ("kit", "passed"))


def parser() -> argparse.ArgumentParser:
    """Return what reads the command's words."""
    made = argparse.ArgumentParser(prog="python -m tests.day_zero", description=__doc__.partition(": ")[2])
    made.add_argument("classes", nargs="*", metavar="CLASS", help="of these alone")
    made.add_argument("--package", default=PACKAGE, help="where the classes are looked for; default: %(default)s")
    made.add_argument("--output", type=Path, help="folder that keeps the drafts; default: a temporary one")
    made.add_argument("--seconds", type=float, default=SECONDS, help="time of each command; default: %(default)s")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it where GitHub shows it; what a class does ends nothing but its own row."""
    given = parser().parse_args(arguments)
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
    tell = _teller(os.environ.get("GITHUB_STEP_SUMMARY"))
    with nullcontext(given.output) if given.output else tempfile.TemporaryDirectory() as folder:
        tell(f"## {_version(given.package)}: classes without an adapter\n\n{HEAD}")
        made = []
        for one in drafts(given.package, given.classes, Path(folder).resolve(), given.seconds):
            tell(one.row())
            made.append(one)
    drafted, passed = (sum(getattr(one, field).startswith(word) for one in made) for field, word in COUNTED)
    counted = f"{len(made)} classes: {drafted} drafted, {passed} of them pass the kit with no line edited."
    none = "None: each has an adapter, or is refused."
    if given.classes:
        none = (
            f"None of {', '.join(given.classes)}: they have an adapter, are refused, or are not denoising classes here."
        )
    tell(f"\n{counted if made else none}")


def drafts(package: str, classes: Sequence[str], folder: Path, seconds: float) -> Iterator[Draft]:
    """Yield what becomes of each class of a package without an adapter, or of some of them.

    Raises:
        SystemExit: The package cannot be imported.
    """
    try:
        listed = [*uncovered(package, seconds)]
    except ImportError as error:
        raise SystemExit(f"error: {error}") from None
    for found in listed:
        if found.error:
            yield Draft(found.name, f"no: the module cannot be imported: {found.error}")
        for kind in found.classes:
            if classes and kind not in classes:
                continue
            try:
                yield draft(kind, found.name, folder, seconds)
            except Exception as error:  # what a class leaves behind may be anything, and the others' rows matter
                yield Draft(kind, f"no: {type(error).__name__}: {error}")


def _version(package: str) -> str:
    distribution = package.partition(".")[0]
    try:
        return f"{distribution} {importlib_metadata.version(distribution)}"
    except importlib_metadata.PackageNotFoundError:
        return package


def _teller(summary: str | None) -> Callable[[str], None]:
    """Return what prints text at once, and appends it to the summary of a step of a workflow where there is one."""

    def tell(text: str) -> None:
        print(text, flush=True)
        if summary:
            with Path(summary).open("a", encoding="utf-8") as file:
                print(text, file=file)

    return tell


if __name__ == "__main__":
    main()
