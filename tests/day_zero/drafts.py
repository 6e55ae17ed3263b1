"""Draft an adapter of one class, run its conformance kit, and say how far that came."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from layersync_core.entrypoints import providers
from layersync_core.families.known import KNOWN
from layersync_core.families.refusals import REFUSALS
from layersync_core.families.registry import GROUP
from tests.day_zero.processes import Ended, python
from tests.scaffold.packages import installed

_TEST = re.compile(r"^\S+::(\w+(?:\[.*?\])?) *(PASSED|FAILED|ERROR|SKIPPED)?", re.M)
_WHY = re.compile(r"^(?:FAILED|ERROR) \S+::(\w+(?:\[.*?\])?)(?: - (.*))?$", re.M)
_LONGEST = 300


@dataclass(frozen=True)
class Draft:
    """One row of the table.

    Attributes:
        kind: The class.
        drafted: ``yes``, or why not.
        blocks: The lists of blocks that were found.
        kit: How its tests ended.
    """

    kind: str
    drafted: str
    blocks: str = "–"
    kit: str = "–"

    def row(self) -> str:
        """Return the row; nobody has edited a line of the draft."""
        cells = [f"`{self.kind}`", *(_cell(text) for text in (self.drafted, self.blocks, self.kit)), "0"]
        return f"| {' | '.join(cells)} |"


HEAD = "| class | drafted | blocks | kit | lines edited by hand |\n| --- | --- | --- | --- | --- |"


def draft(kind: str, module: str, folder: Path, seconds: float) -> Draft:
    """Draft an adapter as a user would, and run its tests.

    Args:
        kind: The class.
        module: Where it is imported from.
        folder: Where the package's folder goes.
        seconds: Time of each of the two commands.
    """
    name = family(kind)
    package = folder / f"layersync-adapter-{name.replace('_', '-')}"
    path = os.environ.get("PYTHONPATH", "")
    command = ["-m", "layersync_core", "new-adapter", name, "--model-class", f"{module}:{kind}", "--output"]
    made = python(*command, str(package), folder=folder, path=path, seconds=seconds)
    if why := made.strange(0, 2):
        return Draft(kind, f"no: {why}{_said(made)}")
    if made.code == 2:
        return Draft(kind, f"no: {made.last().removeprefix('error: ') or made.strange()}")
    if not package.is_dir():
        return Draft(kind, "no: it ended and wrote nothing")
    found = (line.partition(": ")[2] for line in made.out.splitlines() if line.startswith("blocks: "))
    blocks = next((line for line in found if not line.startswith("nothing ")), "")
    if left := _to_fill_in(made.out):
        return Draft(kind, "yes", blocks, f"question: {'; '.join(left)}")
    path = os.pathsep.join(filter(None, (str(installed(package)), path)))
    options = ["-p", "no:cacheprovider", "-v", "-rfE", "--tb=no", "--color=no"]
    tests = python("-m", "pytest", *options, "tests", folder=package, path=path, seconds=seconds)
    return Draft(kind, "yes", blocks, _kit(tests))


def family(kind: str) -> str:
    """Return a name for the family of a class that nobody has yet: short, if it can be had."""
    taken = {*KNOWN, *REFUSALS, *(found.name for found in providers(GROUP))}
    short = re.sub(r"(DiT)?(Transformer|[123]D(?![a-z])).*$|DiT\w*$|Model$", "", kind)
    names = [re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", word).lower() for word in (short, kind)]
    return names[0] if names[0] and names[0] not in taken else names[1]


def _to_fill_in(printed: str) -> list[str]:
    """Return the questions that ``layersync new-adapter`` leaves, without the places where they stand."""
    lines = printed.partition("\nto fill in:\n")[2].splitlines()
    found = [re.fullmatch(r"\S+\.py:\d+: (.*)", line) for line in lines]
    return [*dict.fromkeys(one[1] for one in found if one)]


def _kit(tests: Ended) -> str:
    verdicts = _TEST.findall(tests.out)
    passed = sum(verdict == "PASSED" for _, verdict in verdicts)
    skipped = sum(verdict == "SKIPPED" for _, verdict in verdicts)
    if why := tests.strange(0, 1):
        running = next((name for name, verdict in reversed(verdicts) if not verdict), "")
        return f"{running or 'no test'}: {why}{'' if running else _said(tests)}"
    if tests.code == 0:
        return f"passed ({passed}{f', {skipped} skipped' if skipped else ''})"
    failed = [f"{name}{f': {why}' if why else ''}" for name, why in _WHY.findall(tests.out)]
    return f"{len(failed)} failed, {passed} passed: {'; '.join(failed)}"


def _said(ended: Ended) -> str:
    return f"; it said {ended.last()}" if ended.last() and ended.code is not None else ""


def _cell(text: str) -> str:
    line = " ".join(text.split())
    line = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
    return line.replace("|", "\\|") or "–"
