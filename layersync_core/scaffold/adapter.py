"""The package of a new adapter, written from what is measured on a tiny model of a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from layersync_core.capture.discovery.discover import discover
from layersync_core.capture.discovery.found import Discovery, Question
from layersync_core.documentation import docs_page
from layersync_core.entrypoints import describe_failure, foreign
from layersync_core.families.known import distribution_of, known_family
from layersync_core.families.refusals import REFUSALS, Identity, refused_family
from layersync_core.scaffold.adaptermodule import adapter_source
from layersync_core.scaffold.building import Built, build
from layersync_core.scaffold.classes import ModelClass, load_class
from layersync_core.scaffold.names import check_family, class_name
from layersync_core.scaffold.regularizer import core_requirement
from layersync_core.scaffold.tinymodule import Facts, facts_of, source, text_names, tiny_values
from layersync_core.scaffold.writing import FILL_IN, check_folder, render, write_folder

_BATCH = 2
"""Number of samples in the measured call."""


@dataclass(frozen=True)
class NewAdapter:
    """What was written.

    Attributes:
        folder: The package's folder.
        found: What was found, as lines.
        open: The lines that must be filled in, as ``file:line: what``.
        notes: Further notes for the author.
    """

    folder: Path
    found: list[str]
    open: list[str]
    notes: list[str]


def new_adapter(
    name: str, model_class: str, config: Mapping[str, Any] | None = None, output: Path | None = None
) -> NewAdapter:
    """Write an installable package of an adapter for a model's class.

    Args:
        name: The family's id.
        model_class: ``package.module:Class``.
        config: Settings that the class can be built with, possibly large; default: those of its constructor.
        output: The folder to write; default: the distribution's name in the current folder.

    Raises:
        ConfigError: The name cannot be used, the folder exists or cannot be written, there is no such class, it cannot
            be built, or no inputs can be found for it.
    """
    folder = Path(distribution_of(name)) if output is None else output
    if name not in REFUSALS:
        check_family(name)  # as early as possible
    check_folder(folder)
    kind = load_class(model_class, config)
    check_family(name, kind.bases)
    built = build(kind)
    found, why = _discovered(built)
    facts = facts_of(built)
    files = _files(name, model_class, kind, built, found, why, facts)
    write_folder(folder, files)
    lines = [f"{file}:{number}: {_open(line)}" for file, number, line in _marked(files)]
    notes = _notes(name, kind, built)
    return NewAdapter(folder, found.lines() if found else [f"blocks: {why}"], lines, notes)


def _discovered(built: Built) -> tuple[Discovery | None, str]:
    """Return what discovery found, or why it could not run."""
    if built.fed.error:
        return None, f"nothing was measured, since its forward failed: {built.fed.error}"
    try:
        with foreign(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return _checked(discover(built.model, built.fed.inputs.make(_BATCH))), ""
    except Exception as error:  # a model's backward may raise anything
        return None, f"nothing could be measured: {describe_failure(error)}"


def _checked(found: Discovery) -> Discovery:
    """Return what was found, with a question if the first axis may not be that of the samples."""
    if not found.stacks or len(found.generated) == _BATCH:
        return found
    tokens = [place for place, ranges in enumerate(found.generated) if ranges]
    seen = f"{tokens[0]} to {tokens[-1]} of {len(found.generated)}" if tokens else "none"
    asked = Question(
        "tokens",
        f"its blocks return {len(found.generated)} along the first axis, of {_BATCH} samples; the loss sees {seen}. If "
        "that is (S, B, D): sequence_first=True; stacks cannot describe frames or positions folded into the batch",
    )
    return replace(found, measured=False, questions=(*found.questions, asked))


def _files(
    name: str, path: str, kind: ModelClass, built: Built, found: Discovery | None, why: str, facts: Facts
) -> dict[str, str]:
    package = distribution_of(name).replace("-", "_")
    values = {
        "name": name,
        "Class": kind.name,
        "distribution": distribution_of(name),
        "package": package,
        "core": core_requirement(),
        "guide": docs_page("adapters"),
        "path": path,
        "top": kind.module.partition(".")[0],
        "found": "\n".join(found.lines()) if found else why,
    }
    test_values = _test_values(built, found, facts, package) | {"Class": class_name(name), "name": name}
    return {
        "pyproject.toml": render("adapter", "pyproject", values),
        "README.md": render("adapter", "readme", values),
        f"{package}/__init__.py": render("adapter", "init", values | adapter_source(built, found, why).values()),
        f"{package}/tiny.py": render("adapter", "tiny", values | tiny_values(kind, built, facts)),
        f"{package}/py.typed": "",
        f"tests/test_{name}.py": render("adapter", "test", test_values),
    }


def _test_values(built: Built, found: Discovery | None, facts: Facts, package: str) -> dict[str, str]:
    """Return the values for the template of the tests."""
    more, imports = "", ""
    if facts.batch == 1:
        more += "    batch_size = 1  # the model takes one sample at a time\n"
    names = text_names(built)
    if facts.longer:
        imports = f"\nfrom {package} import tiny\n"
        more += (
            "\n    @staticmethod\n    def longer_text(inputs):\n"
            f"        longer = tiny.example_inputs(None, {facts.batch}, text={facts.longer})\n"
            f"        return inputs | {{name: longer[name] for name in {_tuple(names)}}}\n"
        )
    else:
        usual = [name for name in names if built.guesses.role(name) == "text"]
        more += f"    text = {_tuple(usual)}\n"
    depth = sum(stack.depth for stack in found.stacks) if found and found.stacks else None
    depth_line = str(depth) if depth else f"None  {FILL_IN} how many blocks the tiny model has"
    return {"imports": imports, "more": more, "depth": depth_line}


def _tuple(names: Sequence[str]) -> str:
    """Return the source code of a tuple of names."""
    return f"({', '.join(map(source, names))}{',' if len(names) == 1 else ''})"


def _marked(files: Mapping[str, str]) -> list[tuple[str, int, str]]:
    return [
        (file, number, line)
        for file, text in files.items()
        for number, line in enumerate(text.splitlines(), 1)
        if FILL_IN in line
    ]


def _open(line: str) -> str:
    return line.partition(FILL_IN)[2].strip()


def _notes(name: str, kind: ModelClass, built: Built) -> list[str]:
    """Return what the author of an adapter should know about the class."""
    notes = []
    identity = Identity(kind.bases, dict(built.guesses.settings))
    refused = refused_family(identity)
    if refused is not None:
        notes.append(
            f"LayerSync itself refuses {REFUSALS[refused].models}, since {REFUSALS[refused].reason}; "
            + (
                "your adapter is used in its place"
                if refused == name
                else f"only an adapter named {refused} is asked for it"
            )
        )
    elif (family := known_family(identity)) is not None:
        notes.append(
            f"{kind.name} belongs to family {family}, whose adapter {distribution_of(family)} takes precedence; yours "
            f"is used where family {name} is given"
        )
    if kind.unread:
        notes.append(f"the constructor does not take {', '.join(kind.unread)}, which the config file has")
    return notes
